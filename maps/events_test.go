package maps

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// Whatever stands in the ring, it is an event with bounded parts or an error.
func FuzzEvent(f *testing.F) {
	seed := func(e bpf.Event) {
		var b bytes.Buffer
		if err := binary.Write(&b, binary.NativeEndian, e); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	seed(bpf.Event{Reason: uint8(bpf.ReasonBanned), Family: uint8(bpf.FamilyIPv4), Captured: 60, Length: 60})
	seed(bpf.Event{Reason: 255, Family: 255, Captured: 255, Monitored: 7})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEvent(raw)
		if want := binary.Size(bpf.Event{}); (err == nil) != (len(raw) >= want) {
			t.Fatalf("%d bytes: %v", len(raw), err)
		}
		if err != nil {
			return
		}
		if uint32(len(e.Packet)) > bpf.EventBytes || e.Source.IsValid() != e.Destination.IsValid() || e.Source.Is4In6() && e.Family == bpf.FamilyIPv4 {
			t.Fatalf("%+v", e)
		}
		// It must also be possible to tell of it.
		_ = e.Reason.String()
		_ = e.Reason.Words()
	})
}
