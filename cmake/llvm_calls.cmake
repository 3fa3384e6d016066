# cmake -DROOT=FOLDER -DOUT=FILE -P llvm_calls.cmake: the header that backends/llvm/compat.h includes: a table of pointers to the
# functions of LLVM that the backends' sources call, and for each a macro that makes its name a call through the table.
cmake_minimum_required(VERSION 3.25)
file(GLOB sources ${ROOT}/backends/llvm/*.[ch] ${ROOT}/backends/nvptx/*.[ch])
set(names "")
foreach(source ${sources})
  file(STRINGS ${source} lines REGEX "LLVM[A-Z]")
  string(REGEX MATCHALL "LLVM[A-Z][A-Za-z0-9]*\\(" calls "${lines}")
  list(APPEND names ${calls})
endforeach()
list(TRANSFORM names REPLACE "\\($" "")
list(REMOVE_DUPLICATES names)
list(SORT names)
set(pointers "")
set(macros "")
set(all "")
foreach(name ${names})
  string(APPEND pointers "    __typeof__(${name}) *${name};\n")
  string(APPEND macros "#define ${name} qn_llvm_calls.${name}\n")
  string(APPEND all " \\\n    X(${name})")
endforeach()
file(CONFIGURE OUTPUT ${OUT} @ONLY CONTENT "/* Made by cmake/llvm_calls.cmake. */
#ifndef QN_LLVM_CALLS_H
#define QN_LLVM_CALLS_H

extern struct qn_llvm_calls {
@pointers@} qn_llvm_calls;

#define QN_LLVM_CALLS(X)@all@

@macros@
#endif
")
