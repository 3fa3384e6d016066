/* Texts to pointers: open addressing, in an arena. */
#include <stdint.h>
#include <string.h>

#include "frontend/text/parser.h"

static size_t slot_of(const qn_map *map, const char *key)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *c = key; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    size_t at = (size_t)(hash ^ hash >> 31) & (map->capacity - 1);
    while (map->slots[at].key && strcmp(map->slots[at].key, key) != 0)
        at = (at + 1) & (map->capacity - 1);
    return at;
}

void **qn_map_at(qn_map *map, const char *key, qn_arena *arena)
{
    if (2 * (map->n + 1) > map->capacity) {
        qn_map grown = { .n = map->n, .capacity = map->capacity ? map->capacity * 2 : 16 };
        grown.slots = QN_NEW_ARRAY(arena, qn_map_entry, grown.capacity);
        for (size_t i = 0; i < map->capacity; i++)
            if (map->slots[i].key)
                grown.slots[slot_of(&grown, map->slots[i].key)] = map->slots[i];
        *map = grown;
    }
    qn_map_entry *entry = &map->slots[slot_of(map, key)];
    if (!entry->key) {
        entry->key = key;
        map->n++;
    }
    return &entry->value;
}

void *qn_map_get(const qn_map *map, const char *key)
{
    return map->capacity ? map->slots[slot_of(map, key)].value : NULL;
}
