/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "maps.h"

static __always_inline void stat_add(enum stat stat)
{
	__u64 *count = lookup(stats, stat);

	if (count)
		*count += 1;
}
