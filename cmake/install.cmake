# The install target: executable, its man page and completion, libraries, public headers, pkg-config files, CMake package, licence.
include(CMakePackageConfigHelpers)

install(FILES docs/quern.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES scripts/completion.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME quern)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(TARGETS quern_cli quern_shared quern_runtime_shared quern_runtime_static EXPORT QuernTargets
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
file(GLOB quern_headers CONFIGURE_DEPENDS include/*.h)
if(TARGET quern_mpi_shared)
  install(TARGETS quern_mpi_shared quern_mpi_static
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
else()
  list(FILTER quern_headers EXCLUDE REGEX "/quern_mpi\\.h$")
endif()
install(FILES ${quern_headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/Quern)
install(EXPORT QuernTargets NAMESPACE Quern:: DESTINATION ${package_dir})
configure_package_config_file(cmake/QuernConfig.cmake.in ${PROJECT_BINARY_DIR}/generated/QuernConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/generated/QuernConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/generated/QuernConfig.cmake ${PROJECT_BINARY_DIR}/generated/QuernConfigVersion.cmake
  cmake/QuernModel.cmake DESTINATION ${package_dir})

# The pkg-config files find their prefix from where they lie, so an installed tree can be moved.
file(RELATIVE_PATH quern_pc_prefix "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
foreach(name quern quern_runtime)
  configure_file(cmake/${name}.pc.in ${PROJECT_BINARY_DIR}/generated/${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/generated/${name}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()

# `cpack -G TGZ` or `cpack -G DEB` in the build's folder.
if(PROJECT_IS_TOP_LEVEL)
  set(CPACK_PACKAGE_NAME quern)
  set(CPACK_PACKAGE_CONTACT "Quern's authors")
  set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
  set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
  set(CPACK_STRIP_FILES ON)
  set(CPACK_GENERATOR TGZ)
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
  # It is opened when code is generated.
  string(REGEX MATCH "^[0-9]+" llvm ${QUERN_LLVM_VERSION})
  set(CPACK_DEBIAN_PACKAGE_RECOMMENDS libllvm${llvm})
  include(CPack)
endif()
