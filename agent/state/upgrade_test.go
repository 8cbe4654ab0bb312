package state

import (
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

// unpack puts a file of testdata where the state is opened.
func (h *harness) unpack(name string) {
	h.Helper()
	f, err := os.Open("testdata/" + name)
	if err != nil {
		h.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		h.Fatal(err)
	}
	content, err := io.ReadAll(z)
	if err != nil {
		h.Fatal(err)
	}
	if err := os.WriteFile(h.path, content, 0o600); err != nil {
		h.Fatal(err)
	}
}

// A file that the first schema's program has written is opened and upgraded, and says what it said.
func TestUpgrade(t *testing.T) {
	h := open(t)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h.Store = nil
	h.unpack("schema-1.db.gz")
	check := func() {
		t.Helper()
		h.want("192.0.2.1 operator forever; 198.51.100.0/24 api:gateway forever monitor")
		if c := h.Covering(prefix("192.0.2.1")); len(c) != 2 || c[0].Reason != "credential stuffing" || c[0].Actor != "root" {
			t.Errorf("%+v", c)
		}
		if a := h.Allows(); len(a) != 1 || a[0].Comment != "office" {
			t.Errorf("%+v", a)
		}
		if l, ok := h.Limit("web"); !ok || l.Packets == nil || l.Packets.Rate.Count != 100 {
			t.Errorf("%+v", l)
		}
		if i, ok := h.Interface("eth0"); !ok || i.API != ModeNative {
			t.Errorf("%+v", i)
		}
		if err := h.db.View(func(tx *boltTx) error {
			if v := binary.BigEndian.Uint32(tx.Bucket(bucketMeta).Get(keySchema)); v != Schema {
				t.Errorf("schema %d", v)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	h.reopen()
	check()
	h.reopen()
	check()
	h.ban("192.0.2.9", "operator", 0)
}

// What a newer program wrote is refused, and left as it is, unless that said that this one can read it.
func TestNewer(t *testing.T) {
	for readable, opens := range map[uint32]bool{99: false, Schema + 1: false, Schema: true, 1: true} {
		h := open(t)
		h.ban("192.0.2.1", "operator", 0)
		if err := h.db.Update(func(tx *boltTx) error {
			meta := tx.Bucket(bucketMeta)
			return errors.Join(meta.Put(keySchema, []byte{0, 0, 0, 99}), meta.Put(keyReadable, binary.BigEndian.AppendUint32(nil, readable)))
		}); err != nil {
			t.Fatal(err)
		}
		h.Close()
		before, err := os.ReadFile(h.path)
		if err != nil {
			t.Fatal(err)
		}
		s, lost, err := OpenOrSetAside(Config{Path: h.path, Clock: h.clock})
		h.Store = s
		if opens {
			if err != nil || lost != nil {
				t.Errorf("readable by %d: %v, %v", readable, lost, err)
			} else {
				h.want("192.0.2.1 operator forever")
			}
			continue
		}
		if _, newer := errors.AsType[*NewerError](err); !newer || lost != nil || !strings.Contains(err.Error(), "written by a newer Levee; install that") {
			t.Errorf("readable by %d: %v, %v", readable, lost, err)
		}
		if after, err := os.ReadFile(h.path); err != nil || string(after) != string(before) {
			t.Errorf("readable by %d: the file was touched: %v", readable, err)
		}
	}
}
