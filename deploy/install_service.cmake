# Installs the systemd unit. Written at install time, when the prefix is known: it names the files that this install
# put there. GNUInstallDirs knows the exceptions: /etc for /usr, /etc/opt/x for /opt/x.
set(CMAKE_INSTALL_LIBDIR lib)
include(GNUInstallDirs)
set(written "${KAVERN_DEPLOY_BINARY_DIR}/kavernd.service")
configure_file("${CMAKE_CURRENT_LIST_DIR}/kavernd.service.in" "${written}" @ONLY)
file(INSTALL "${written}" DESTINATION "${CMAKE_INSTALL_PREFIX}/lib/systemd/system")
# The operator's configuration is never overwritten.
if(EXISTS "$ENV{DESTDIR}${CMAKE_INSTALL_FULL_SYSCONFDIR}/kavern/kavern.yaml")
  message(STATUS "Kept: $ENV{DESTDIR}${CMAKE_INSTALL_FULL_SYSCONFDIR}/kavern/kavern.yaml")
else()
  file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/kavern.example.yaml" DESTINATION "${CMAKE_INSTALL_FULL_SYSCONFDIR}/kavern"
    RENAME kavern.yaml)
endif()
