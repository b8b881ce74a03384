// kavern._kavern: the C++ client, one to one. The package around it is client/python/kavern.
#include "base/lock_checks.h"
#include "client/python/bindings/bindings.h"

NB_MODULE(_kavern, module) {
  kavern::StopAbseilLockChecks();
  // Objects that are alive when the interpreter ends are its business, not a user's.
  nanobind::set_leak_warnings(false);
  module.doc() = "The C++ client of kavernd. Import `kavern` instead.";
  kavern::python::BindLayout(module);
  kavern::python::BindLeases(module);
  kavern::python::BindClient(module);
  kavern::python::BindPaged(module);
}
