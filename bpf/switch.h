/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#pragma once

#include "maps.h"

/* The operator's switches, first of all: panic lets everything pass, malformed packets too. */
static __always_inline enum reason stage_switch(const struct control *control)
{
	return unlikely(control->panic) ? REASON_PANIC : REASON_CONTINUE;
}
