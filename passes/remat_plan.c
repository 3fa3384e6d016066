/* Which values of a training step to compute again: see remat.h.
 *
 * A plan is judged by running it in thought: each group in its order, and behind the loss a second copy of what is dropped,
 * computed right before its first reader. That tells the bytes that are live at any time. */
#include <math.h>
#include <string.h>

#include "passes/remat.h"

/* ---- a run ---- */

typedef struct life { /* when it is made and when it is read last; made < 0: never */
    int made, last;
} life;

typedef struct planner {
    qn_remat_model *model;
    life *first, *second; /* by item; second: computed again */
    double *change;       /* by time: bytes more than before */
    bool *kept;           /* by item: made before the loss and read behind it, at the beginning of a round */
    double limit, work;
    int now, peak_time;
} planner;

static planner planner_for(qn_remat_model *m)
{
    return (planner){ .model = m,
                      .first = QN_NEW_ARRAY(m->arena, life, m->n_items),
                      .second = QN_NEW_ARRAY(m->arena, life, m->n_items),
                      .change = QN_NEW_ARRAY(m->arena, double, m->n_groups + m->n_items + 1),
                      .kept = QN_NEW_ARRAY(m->arena, bool, m->n_items) };
}

static void make_second(planner *p, int item);

/* What runs now reads these items. */
static void read_items(planner *p, int n, const int *items, bool late)
{
    const qn_remat_item *all = p->model->items;
    for (int i = 0; i < n; i++)
        if (late && all[items[i]].dropped && p->second[items[i]].made < 0)
            make_second(p, items[i]);
    for (int i = 0; i < n; i++)
        (late && all[items[i]].dropped ? p->second : p->first)[items[i]].last = p->now;
}

static void make_second(planner *p, int item)
{
    const qn_remat_item *it = &p->model->items[item];
    read_items(p, it->n_needs, it->needs, true);
    p->second[item] = (life){ p->now, p->now };
    p->work += it->work;
    p->now++;
}

static void add_life(planner *p, life l, double bytes)
{
    if (l.made < 0)
        return;
    p->change[l.made] += bytes;
    p->change[l.last + 1] -= bytes;
}

static qn_remat_run run(planner *p)
{
    const qn_remat_model *m = p->model;
    p->now = 0;
    p->work = 0;
    for (int i = 0; i < m->n_items; i++)
        p->first[i].made = p->second[i].made = -1;
    for (int g = 0; g < m->n_groups; g++) {
        const qn_remat_group *group = &m->groups[g];
        read_items(p, group->n_reads, group->reads, g > m->last_forward);
        for (int i = 0; i < group->n_makes; i++)
            p->first[group->makes[i]] = (life){ p->now, p->now };
        p->now++;
    }
    memset(p->change, 0, ((size_t)p->now + 1) * sizeof *p->change);
    for (int i = 0; i < m->n_items; i++) {
        add_life(p, p->first[i], m->items[i].bytes);
        add_life(p, p->second[i], m->items[i].bytes);
    }
    qn_remat_run result = { .work = p->work };
    double live = 0;
    for (int t = 0; t < p->now; t++) {
        live += p->change[t];
        if (live > result.peak) {
            result.peak = live;
            p->peak_time = t;
        }
        result.excess += fmax(live - p->limit, 0);
    }
    return result;
}

qn_remat_run qn_remat_run_of(qn_remat_model *model)
{
    planner p = planner_for(model);
    return run(&p);
}

/* ---- the search: one drop after the other, each the one that saves most for its work ---- */

enum { SHORTLIST = 32 };

/* Drops an item, and with `all` also what it needs that nothing else keeps. In `list`: what was dropped. */
static void drop(planner *p, int item, bool all, int *list, int *n)
{
    qn_remat_item *it = &p->model->items[item];
    it->dropped = true;
    list[(*n)++] = item;
    for (int i = 0; i < it->n_needs && all; i++) {
        const qn_remat_item *need = &p->model->items[it->needs[i]];
        if (need->forward && !need->dropped && !p->kept[it->needs[i]])
            drop(p, it->needs[i], true, list, n);
    }
}

static void undo(planner *p, const int *list, int n)
{
    for (int i = 0; i < n; i++)
        p->model->items[list[i]].dropped = false;
}

/* Of the items that are kept over the peak those whose dropping promises most: bytes x time for the work. In `list`; gives
 * their number. */
static int find_candidates(const planner *p, int *list)
{
    double worth[SHORTLIST];
    int n = 0;
    for (int i = 0; i < p->model->n_items; i++) {
        const qn_remat_item *it = &p->model->items[i];
        if (!it->forward || it->dropped || !p->kept[i] || p->first[i].made > p->peak_time ||
            p->first[i].last < p->peak_time)
            continue;
        const double w = it->bytes * (p->first[i].last - p->first[i].made) / (it->work + 1);
        int at = n < SHORTLIST ? n : SHORTLIST;
        while (at > 0 && worth[at - 1] < w)
            at--;
        if (at == SHORTLIST)
            continue;
        n += n < SHORTLIST;
        for (int k = n - 1; k > at; k--) {
            worth[k] = worth[k - 1];
            list[k] = list[k - 1];
        }
        worth[at] = w;
        list[at] = i;
    }
    return n;
}

/* Takes the best of the candidates, after a run; false when none lowers the excess. */
static bool drop_best(planner *p, const qn_remat_run *now, int *list)
{
    int candidates[SHORTLIST], best = -1, dropped;
    bool best_all = false;
    double best_worth = 0;
    for (int i = 0; i < p->model->n_items; i++)
        p->kept[i] = p->first[i].last > p->model->last_forward;
    const int n = find_candidates(p, candidates);
    for (int i = 0; i < 2 * n; i++) {
        dropped = 0;
        drop(p, candidates[i / 2], i % 2, list, &dropped);
        const qn_remat_run then = run(p);
        undo(p, list, dropped);
        const double worth = (now->excess - then.excess) / (fmax(then.work - now->work, 0) + 1);
        if (worth > best_worth) {
            best_worth = worth;
            best = candidates[i / 2];
            best_all = i % 2;
        }
    }
    dropped = 0;
    if (best >= 0)
        drop(p, best, best_all, list, &dropped);
    return best >= 0;
}

/* What need not be dropped after all, the most work first. */
static void restore(planner *p)
{
    const qn_remat_model *m = p->model;
    const qn_remat_run now = run(p);
    bool *tried = QN_NEW_ARRAY(m->arena, bool, m->n_items);
    for (;;) {
        int most = -1;
        for (int i = 0; i < m->n_items; i++)
            if (m->items[i].dropped && !tried[i] && (most < 0 || m->items[i].work > m->items[most].work))
                most = i;
        if (most < 0)
            return;
        tried[most] = true;
        m->items[most].dropped = false;
        m->items[most].dropped = run(p).excess > now.excess;
    }
}

static bool search(planner *p, double limit)
{
    int *list = QN_NEW_ARRAY(p->model->arena, int, p->model->n_items + 1);
    p->limit = limit;
    qn_remat_run now = run(p);
    while (now.excess > 0 && drop_best(p, &now, list))
        now = run(p);
    return now.excess <= 0;
}

bool qn_remat_search(qn_remat_model *model, double limit)
{
    planner p = planner_for(model);
    const bool found = search(&p, limit);
    restore(&p);
    return found;
}

void qn_remat_search_least(qn_remat_model *model)
{
    planner p = planner_for(model);
    const double STEP =
        0.95; /* of the peak so far: limits that become lower lead further than a low one at once */
    search(&p, run(&p).peak / 2);
    for (double peak = run(&p).peak, before = INFINITY; peak < before;) {
        before = peak;
        search(&p, STEP * peak);
        peak = run(&p).peak;
    }
    p.limit = run(&p).peak;
    restore(&p);
}

/* ---- cuts ---- */

void qn_remat_cut(qn_remat_model *model)
{
    qn_arena *arena = model->arena;
    planner p = planner_for(model);
    const int n = model->last_forward + 1, n_parts = (int)lround(sqrt(n));
    double *across = QN_NEW_ARRAY(arena, double, n + 1); /* by group: bytes that are live before it */
    int *last = QN_NEW_ARRAY(arena, int, model->n_items);
    bool *kept = QN_NEW_ARRAY(arena, bool, model->n_items);
    run(&p);
    for (int g = 0; g < n; g++)
        for (int i = 0; i < model->groups[g].n_reads; i++)
            last[model->groups[g].reads[i]] = g;
    for (int i = 0; i < model->n_items; i++)
        for (int g = p.first[i].made + 1; model->items[i].forward && g <= last[i]; g++)
            across[g] += model->items[i].bytes;
    for (int part = 1; part < n_parts; part++) {
        const double middle = (double)part * n / n_parts, half = 0.5 * n / n_parts;
        int cut = (int)(middle - half) + 1;
        for (int g = cut; g < (int)(middle + half); g++)
            cut = across[g] < across[cut] ? g : cut;
        for (int i = 0; i < model->n_items; i++)
            kept[i] |= p.first[i].made < cut && last[i] >= cut;
    }
    for (int i = 0; i < model->n_items; i++)
        model->items[i].dropped = model->items[i].forward && !kept[i];
}
