/* Clusters and their demands, as they grow: passes/fuse.h. */
#include "passes/fuse.h"

#include <string.h>

/* ---- demands ---- */

qn_demand *qn_demand_find(const qn_fuser *f, const qn_value *value, const qn_cluster *by)
{
    qn_demand *d = f->demands[value->id];
    while (d && d->by != by)
        d = d->next;
    return d;
}

qn_demand *qn_demand_add(qn_fuser *f, qn_value *value, qn_cluster *by)
{
    qn_demand *d = qn_demand_find(f, value, by);
    if (d)
        return d;
    d = QN_NEW(f->scratch, qn_demand);
    d->by = by;
    d->next = f->demands[value->id];
    f->demands[value->id] = d;
    return d;
}

void qn_demand_whole(qn_fuser *f, qn_value *value, qn_cluster *by)
{
    if (by)
        qn_demand_add(f, value, by)->whole = true;
    f->stored[value->id] = true;
}

qn_demand *qn_demand_at(qn_fuser *f, qn_value *value, qn_cluster *by, const qn_dim *index)
{
    qn_demand *d = qn_demand_add(f, value, by);
    const size_t bytes = (size_t)value->type.rank * sizeof *index;
    for (size_t i = 0; i < d->indices.n; i++)
        if (bytes == 0 || memcmp(d->indices.items[i], index, bytes) == 0)
            return d;
    const qn_dim *copy = qn_arena_copy(f->scratch, index, bytes);
    qn_vec_push(f->scratch, &d->indices, copy);
    return d;
}

/* ---- clusters ---- */

void qn_cluster_take(qn_fuser *f, qn_cluster *c, qn_node *node)
{
    qn_vec_push(f->scratch, &c->nodes, node);
    if (!f->symbols)
        return;
    for (size_t i = 0; i < f->binders.n; i++)
        f->symbols[qn_node_binds(f->binders.items[i]->node)->symbol] = false;
    qn_node_mark_symbols(node, f->symbols);
    for (size_t i = 0; i < f->binders.n; i++) {
        qn_value *value = f->binders.items[i];
        bool waits = value->node == node;
        for (size_t k = 0; k < c->waits.n; k++)
            waits |= c->waits.items[k] == value;
        if (waits || !f->symbols[qn_node_binds(value->node)->symbol])
            continue;
        qn_demand_whole(f, value, c);
        qn_vec_push(f->scratch, &c->waits, value);
    }
}

qn_cluster *qn_cluster_new(qn_fuser *f, qn_group_kind kind, qn_node *root)
{
    qn_cluster *c = QN_NEW(f->scratch, qn_cluster);
    c->group.kind = kind;
    c->group.root = root;
    c->number = (int)f->clusters.n;
    c->closed = kind == QN_GROUP_SINGLE || kind == QN_GROUP_CONTROL;
    qn_ispace_init(&c->space, f->scratch);
    qn_vec_push(f->scratch, &f->clusters, c);
    return c;
}

void qn_cluster_set_space(qn_cluster *c, const qn_type *type)
{
    qn_ispace_dims(&c->space, type, c->dims);
    c->group.n_dims = type->rank;
    for (int i = 0; i < type->rank; i++)
        c->vars[i] = qn_ispace_var(&c->space, c->dims[i], false);
    c->linear = qn_ix_linear(&c->space, type->rank, c->dims, c->vars);
    c->n_elements = qn_dim_const(c->space.dims, 1);
    for (int i = 0; i < type->rank; i++)
        c->n_elements = qn_dim_mul(c->space.dims, c->n_elements, c->dims[i]);
}

qn_dim qn_cluster_linear(qn_cluster *c, const qn_type *type, const qn_dim *index)
{
    qn_dim dims[QN_MAX_RANK];
    qn_ispace_dims(&c->space, type, dims);
    return qn_ix_linear(&c->space, type->rank, dims, index);
}

static qn_dim element_count(qn_cluster *c, const qn_type *type)
{
    qn_dim n = qn_dim_const(c->space.dims, 1);
    for (int i = 0; i < type->rank; i++)
        n = qn_dim_mul(c->space.dims, n, qn_ispace_import(&c->space, type->dims[i]));
    return n;
}

bool qn_cluster_reads_own(qn_cluster *c, const qn_demand *d, const qn_type *type)
{
    if (d->whole || d->indices.n != 1)
        return false;
    const qn_dim linear = qn_cluster_linear(c, type, d->indices.items[0]), n = element_count(c, type);
    if (linear == c->linear && n == c->n_elements)
        return true;
    return c->group.kind == QN_GROUP_ROWS && linear == c->rows.row && n == c->rows.n_rows;
}

void qn_cluster_add_output(qn_fuser *f, qn_cluster *c, qn_value *value)
{
    qn_vec_push(f->scratch, &c->outputs, value);
    f->maker[value->id] = c;
}
