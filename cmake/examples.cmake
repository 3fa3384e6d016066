# Examples see only the public headers; benchmarks may see everything.
# examples/NAME/NAME.c is a program; examples/common is what they share. Some need a library that Quern does not.
find_package(PNG)
file(GLOB examples CONFIGURE_DEPENDS examples/*/*.c)
foreach(source ${examples})
  get_filename_component(name ${source} NAME_WE)
  get_filename_component(folder ${source} DIRECTORY)
  get_filename_component(folder ${folder} NAME)
  if(NOT name STREQUAL folder OR name STREQUAL "common" OR (name STREQUAL "gan" AND NOT PNG_FOUND))
    continue()
  endif()
  add_executable(example_${name} ${source} examples/common/common.c examples/common/cartpole.c)
  set_target_properties(example_${name} PROPERTIES OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/examples BUILD_RPATH "${PROJECT_BINARY_DIR}")
  target_include_directories(example_${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(example_${name} PRIVATE _GNU_SOURCE
    EXAMPLE_DIGITS="${PROJECT_SOURCE_DIR}/examples/digits/digits.npz"
    EXAMPLE_TEXT="${PROJECT_SOURCE_DIR}/LICENSE")
  target_compile_options(example_${name} PRIVATE -Wall -Wextra -Wpedantic -ffp-contract=off
    $<$<BOOL:${QUERN_WERROR}>:-Werror>)
  target_link_libraries(example_${name} PRIVATE quern_shared m pthread)
  if(name STREQUAL "gan")
    target_link_libraries(example_${name} PRIVATE PNG::PNG)
  endif()
endforeach()
file(GLOB benchmarks CONFIGURE_DEPENDS bench/*.c)
foreach(source ${benchmarks})
  get_filename_component(name ${source} NAME_WE)
  add_executable(bench_${name} ${source})
  set_target_properties(bench_${name} PROPERTIES OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bench)
  target_link_libraries(bench_${name} PRIVATE quern_flags quern_core)
endforeach()
