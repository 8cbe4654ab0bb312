package agent

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// An origin with many claims is taken back in parts: a ban that comes meanwhile waits for one of them,
// another such call is told to come again, and the answer only counts.
func TestUnbanOrigin(t *testing.T) {
	const many = 3*bulkPart + 100
	k := newFakeKernel()
	k.room = 2 * many
	d := newDaemon(t, k, "")
	var lines strings.Builder
	for i := range many {
		fmt.Fprintf(&lines, "198.%d.%d.%d\n", 18+i/65536, i/256%256, i%256)
	}
	d.bulk(state.BulkRequest{Origin: "api:gateway"}, client.PlainLines, lines.String())
	d.ban(state.BanItem{Prefix: "198.18.0.1", Origin: "operator"}, state.BanItem{Prefix: "192.0.2.1", Origin: "operator"})

	c := client.New(client.Config{Socket: filepath.Join(d.dir, "s"), Retries: -1})
	defer c.Close()
	var deleted, before atomic.Int64
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	k.onDelete = func() {
		once.Do(func() { close(held); <-hold })
		deleted.Add(1)
	}
	k.onPut = func() { before.CompareAndSwap(0, deleted.Load()) }
	type answer struct {
		state.BanResponse
		error
	}
	whole, other := make(chan answer, 1), make(chan answer, 1)
	go func() {
		r, err := c.Unban(t.Context(), state.UnbanRequest{Origin: "api:gateway"})
		whole <- answer{r, err}
	}()
	<-held
	if _, err := c.Unban(t.Context(), state.UnbanRequest{Origin: "feed:x"}); statusOf(err) != 503 {
		t.Errorf("a second one at once: %v", err)
	}
	before.Store(0)
	go func() {
		r, err := c.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.2", Origin: "operator"}}})
		other <- answer{r, err}
	}()
	until(t, func() bool { // it is on disk, and waits for the kernel's tables
		page, err := c.Bans(t.Context(), state.Filter{Origin: "operator"})
		return err == nil && page.Total == 3
	})
	close(hold)
	if r := <-other; r.error != nil || r.Done != 1 {
		t.Errorf("%+v, %v", r.BanResponse, r.error)
	}
	if n := before.Load(); n == 0 || n >= many-1 {
		t.Errorf("a ban waited until %d of %d were taken back", n, many-1)
	}
	r := <-whole
	if r.error != nil || r.Done != many || r.Refused != 0 || len(r.Bans) != 0 {
		t.Errorf("%d done, %d refused, %d told, %v", r.Done, r.Refused, len(r.Bans), r.error)
	}
	d.want("192.0.2.1/32 192.0.2.2/32 198.18.0.1/32")
	if u, err := c.Unban(t.Context(), state.UnbanRequest{Origin: "api:gateway"}); err != nil || u.Done != 0 {
		t.Errorf("%+v, %v", u, err)
	}
	d.end()
	told := 0
	for _, e := range d.audited() {
		if e.Event.Action == "unban" && e.Levee.Target == "api:gateway" {
			for _, b := range e.Levee.Bans {
				told += len(b.Prefixes)
			}
		}
	}
	if told != many {
		t.Errorf("the audit log tells of %d, want %d", told, many)
	}
	d.start()
}
