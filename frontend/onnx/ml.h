/* What the operators of ai.onnx.ml share. */
#ifndef QN_FRONTEND_ONNX_ML_H
#define QN_FRONTEND_ONNX_ML_H

#include "frontend/onnx/import.h"

/* Numbers of a list of floats or, instead of it, of a tensor (whose name may be NULL; `out_double`: of doubles). NULL when both are
 * absent. */
const double *qn_ml_numbers(qn_onnx_node *n, const char *name, const char *tensor_name, int *out_n,
                            bool *out_double);
/* The constant of a list of floats; NULL when it is absent. */
qn_value *qn_ml_vector(qn_onnx_node *n, const char *name);
/* Which of a list of strings an attribute is; -1 after a report. */
int qn_ml_word(qn_onnx_node *n, const char *name, const char *fallback, const char *const *words);

typedef enum qn_ml_post {
    QN_POST_NONE,
    QN_POST_SOFTMAX,
    QN_POST_LOGISTIC,
    QN_POST_SOFTMAX_ZERO,
    QN_POST_PROBIT
} qn_ml_post;
int qn_ml_post_of(qn_onnx_node *n); /* the attribute post_transform; -1 after a report */
/* Scores [N, classes] after it. */
qn_value *qn_ml_post_transform(qn_onnx_node *n, qn_ml_post post, qn_value *scores);

/* How many classes an operator has labels for; -1 after a report: labels that are strings are not supported. */
int qn_ml_n_classes(qn_onnx_node *n, const char *ints);
/* Output i is the labels of classes [N], which are numbers from 0 on: i64, or strings. */
void qn_ml_out_labels(qn_onnx_node *n, int i, const char *ints, qn_value *classes);

#endif
