# The client library for programs outside this tree: find_package(Kavern) gives Kavern::client.
include(CMakePackageConfigHelpers)

set(KAVERN_INCLUDE_DIR "${CMAKE_INSTALL_INCLUDEDIR}/kavern")
set(KAVERN_PACKAGE_DIR "${CMAKE_INSTALL_LIBDIR}/cmake/Kavern")

# Headers keep their spelling: #include "client/kavern/client.h".
install(FILES "${CMAKE_SOURCE_DIR}/client/kavern/client.h" "${CMAKE_SOURCE_DIR}/client/kavern/paged_kv.h"
  DESTINATION "${KAVERN_INCLUDE_DIR}/client/kavern")
foreach(header block_key copy_and_checksum cost_fit kv_layout namespace_spec tier turn_costs turn_plan)
  install(FILES "${CMAKE_SOURCE_DIR}/base/${header}.h" DESTINATION "${KAVERN_INCLUDE_DIR}/base")
endforeach()

set_target_properties(kavern_client PROPERTIES EXPORT_NAME client)
target_include_directories(kavern_client INTERFACE $<INSTALL_INTERFACE:${KAVERN_INCLUDE_DIR}>)
# The public header needs C++20, whatever the program's default.
target_compile_features(kavern_client INTERFACE cxx_std_20)
install(TARGETS kavern_base kavern_shm_layout kavern_messages kavern_grpc kavern_client_core kavern_client
  EXPORT KavernTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(EXPORT KavernTargets NAMESPACE Kavern:: DESTINATION "${KAVERN_PACKAGE_DIR}")
configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/KavernConfig.cmake.in"
  "${CMAKE_BINARY_DIR}/KavernConfig.cmake" INSTALL_DESTINATION "${KAVERN_PACKAGE_DIR}")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/KavernConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/KavernConfig.cmake" "${CMAKE_BINARY_DIR}/KavernConfigVersion.cmake"
  DESTINATION "${KAVERN_PACKAGE_DIR}")
