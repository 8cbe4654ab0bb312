package reconcile

import (
	"context"
	"net/netip"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

// mend puts right in small steps what differs: what the kernel lacks or has otherwise, and then what it
// should not have. So a change waits for one of them at most. It returns how many prefixes differed. What is
// damaged beside them is left to Sync.
func (r *Reconciler) mend(ctx context.Context) (drift int) {
	var wrong []netip.Prefix
	put := func() {
		free := r.bans.still()
		defer free()
		r.apply(wrong) // it reads what is to be now, so it does no harm where that has changed
		drift += len(wrong)
		wrong = wrong[:0]
	}
	var bans []state.Ban
	one := make([]maps.Ban, 1)
	for place := uint32(1); place != 0 && ctx.Err() == nil; {
		bans, place = r.State.BansFrom(place, bans[:0])
		for _, b := range bans {
			if one[0] = kernelBan(b); r.Bans.Lacks(one) > 0 {
				wrong = append(wrong, b.Prefix)
			}
		}
		if len(wrong) > 0 {
			put()
		}
	}
	const part = 1024
	for b := range r.Bans.All() {
		if _, wanted := r.State.Effective(b.Prefix); !wanted {
			wrong = append(wrong, b.Prefix)
		}
		if len(wrong) == part {
			put()
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(wrong) > 0 {
		put()
	}
	return drift
}
