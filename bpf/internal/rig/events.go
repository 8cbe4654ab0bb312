package rig

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/levee-xdp/levee/bpf"
)

// Events reads the program's sampled packets.
type Events struct{ reader *ringbuf.Reader }

// Events opens the ring buffer. There may be one reader at a time.
func (r *Rig) Events() (*Events, error) {
	reader, err := ringbuf.NewReader(r.Maps[bpf.LeveeMapEvents])
	if err != nil {
		return nil, fmt.Errorf("open the events: %w", err)
	}
	return &Events{reader}, nil
}

// Drain returns what is there, without waiting for more.
func (e *Events) Drain() ([]bpf.Event, error) {
	var all []bpf.Event
	e.reader.SetDeadline(time.Unix(1, 0))
	for {
		record, err := e.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("read an event: %w", err)
		}
		var event bpf.Event
		if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &event); err != nil {
			return all, fmt.Errorf("decode an event of %d bytes: %w", len(record.RawSample), err)
		}
		all = append(all, event)
	}
}

// Close ends the reading.
func (e *Events) Close() error { return e.reader.Close() }
