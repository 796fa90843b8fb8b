/* Zeroed memory for a table: whole cache lines, and huge pages where it fills any, which save the walk to a page that a
   look-up in a large table costs beside the cache miss. */
#ifndef CAREGATE_REMEMBERED_H
#define CAREGATE_REMEMBERED_H

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define REMEMBERED_LINE 64
#define REMEMBERED_HUGE (2 << 20)

static void *remembered_block(size_t size)
{
    const int huge = size >= REMEMBERED_HUGE;
    void *block = NULL;
    if (posix_memalign(&block, huge ? REMEMBERED_HUGE : REMEMBERED_LINE, size))
        return NULL;
#ifdef MADV_HUGEPAGE
    if (huge)
        (void)madvise(block, size, MADV_HUGEPAGE); /* a wish: without huge pages it is as before */
#endif
    return memset(block, 0, size);
}

#endif
