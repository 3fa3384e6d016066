/* What the files of the builder share. */
#ifndef QN_IR_BUILD_INTERNAL_H
#define QN_IR_BUILD_INTERNAL_H

#include "ir/build.h"

/* Attributes of a node to be, sorted by key. What they point to must live until the node is made, which copies it. */
typedef struct qn_attr_list {
    int n;
    qn_attr items[8];
} qn_attr_list;

void qn_attrs_int(qn_attr_list *list, qn_attr_key key, int64_t value); /* INT, DTYPE, KIND, DIRECTION */
void qn_attrs_flag(qn_attr_list *list, qn_attr_key key, bool value);   /* BOOL; false: stays absent */
void qn_attrs_float(qn_attr_list *list, qn_attr_key key, double value);
void qn_attrs_ints(qn_attr_list *list, qn_attr_key key, int n, const int64_t *values);
void qn_attrs_dims(qn_attr_list *list, qn_attr_key key, int n, const qn_dim *values);
void qn_attrs_string(qn_attr_list *list, qn_attr_key key, const char *value);

/* The node, or NULL when an operand is NULL or after a report. `list` may be NULL. */
qn_node *qn_build_node(qn_builder *b, qn_op op, int n, qn_value *const *operands, const qn_attr_list *list,
                       int n_regions, qn_graph *const *regions);
/* Its first result. */
qn_value *qn_build(qn_builder *b, qn_op op, int n, qn_value *const *operands, const qn_attr_list *list);

/* Reports at the builder's place and gives NULL. */
qn_value *qn_build_error(qn_builder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
