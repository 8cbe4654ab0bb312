package state

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"slices"

	"go.etcd.io/bbolt"
)

type boltTx = bbolt.Tx

func openReadOnly(path string) (*os.File, error) { return os.Open(path) }

// sealed gives a segment the checksum that it should have.
func sealed(b []byte) []byte {
	b = slices.Clone(b)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}
