package maps

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/levee-xdp/levee/bpf"
)

// Event is one packet that was dropped, or would have been if nothing monitored.
type Event struct {
	Time        uint64 // ns of CLOCK_MONOTONIC, a tick late at most
	Interface   int    // the index of the interface
	Reason      bpf.Reason
	Family      bpf.Family
	Monitored   bool       // it passed after all
	Source      netip.Addr // not valid if the packet is not IP, or its header is malformed
	Destination netip.Addr
	Protocol    uint8  // IANA's number; 255: not known
	SourcePort  uint16 // 0: not known
	Port        uint16 // the destination's; 0: not known
	List        uint16 // of the ban, where one is the reason
	Limit       uint8  // the number of the limit, where one is the reason
	Length      uint32 // of the whole frame
	Packet      []byte // the frame's first bytes, at most bpf.EventBytes; the receiver's to keep
}

// Events is the program's samples of what it drops. There is one reader at a time.
type Events struct{ ring *ebpf.Map }

// Run hands each event on until ctx ends, and returns nil then. While a call lasts, events wait in
// the ring; when it is full the program counts them as lost (bpf.StatEventsLost) and goes on.
func (e *Events) Run(ctx context.Context, each func(Event)) (err error) {
	reader, err := ringbuf.NewReader(e.ring)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer func() {
		if e := reader.Close(); e != nil && err == nil {
			err = fmt.Errorf("read events: %w", e)
		}
	}()
	// Flush, as it takes no lock: SetDeadline would wait for the read that it is to end.
	defer context.AfterFunc(ctx, func() { _ = reader.Flush() })()

	var record ringbuf.Record
	for ctx.Err() == nil {
		err := reader.ReadInto(&record)
		switch {
		case errors.Is(err, ringbuf.ErrFlushed):
			continue
		case err != nil:
			return fmt.Errorf("read events: %w", err)
		}
		event, err := decodeEvent(record.RawSample)
		if err != nil {
			return err
		}
		each(event)
	}
	return nil
}

// decodeEvent takes an event apart; struct event in types.h is its layout.
func decodeEvent(raw []byte) (Event, error) {
	var e bpf.Event
	if n, err := binary.Decode(raw, binary.NativeEndian, &e); err != nil || n > len(raw) {
		return Event{}, fmt.Errorf("event of %d bytes: too short", len(raw))
	}
	event := Event{
		Time:       e.Time,
		Interface:  int(e.Ifindex),
		Reason:     bpf.Reason(e.Reason),
		Family:     bpf.Family(e.Family),
		Monitored:  e.Monitored != 0,
		Protocol:   e.Protocol,
		SourcePort: e.Sport,
		Port:       e.Dport,
		List:       e.List,
		Limit:      e.Limit,
		Length:     e.Length,
		Packet:     append([]byte(nil), e.Packet[:min(int(e.Captured), len(e.Packet))]...),
	}
	if event.Reason == bpf.ReasonMalformedL3 {
		return event, nil // its addresses were not read
	}
	switch event.Family {
	case bpf.FamilyIPv4:
		event.Source, event.Destination = addr4(uint32(e.Src[1])), addr4(uint32(e.Dst[1]))
	case bpf.FamilyIPv6:
		event.Source, event.Destination = addr6(e.Src[0], e.Src[1]), addr6(e.Dst[0], e.Dst[1])
	case bpf.FamilyOther: // has no addresses
	}
	return event, nil
}
