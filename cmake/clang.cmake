# Toolchain of the clang presets: the newest clang that is found, unversioned last. CC overrides it.
if(NOT DEFINED ENV{CC})
  find_program(quern_clang NAMES clang-22 clang-21 clang-20 clang-19 clang-18 clang-17 clang-16 clang NO_CACHE)
  if(NOT quern_clang)
    message(FATAL_ERROR "this preset needs clang 16 or newer (Debian and Ubuntu: apt-get install clang-22)")
  endif()
  set(CMAKE_C_COMPILER ${quern_clang})
endif()
