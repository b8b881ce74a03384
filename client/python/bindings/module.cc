// kavern._kavern: the C++ client, one to one. The package around it is client/python/kavern.
#include "client/python/bindings/bindings.h"

NB_MODULE(_kavern, module) {
  module.doc() = "The C++ client of kavernd. Import `kavern` instead.";
  kavern::python::BindLayout(module);
  kavern::python::BindLeases(module);
  kavern::python::BindClient(module);
}
