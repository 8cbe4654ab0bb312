package state

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/bbolt"
)

// Schema is the version of what stands in the file. It grows with every change of it, and upgrade
// brings older files along.
const Schema = 2

// readableBy is the oldest schema whose programs can read what this one writes, so that one can go
// back to them: what they do not know they leave alone.
const readableBy = 2

var (
	keySchema   = []byte("schema")
	keyReadable = []byte("readable") // what the file's writer gave as readableBy
)

// NewerError says that the file was written by a program that knows more.
type NewerError struct {
	Path   string
	Schema uint32
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("state %s has schema %d, this program knows %d: it was written by a newer Levee; install that, or move the file away",
		e.Path, e.Schema, Schema)
}

// schemaOf returns the schema of a file that this program can read.
func (s *Store) schemaOf(tx *bbolt.Tx) (uint32, error) {
	damaged := func(what string) error {
		return &DamagedError{s.config.Path, fmt.Errorf("it lacks its %s", what)}
	}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return 0, damaged("head")
	}
	schema := meta.Get(keySchema)
	if len(schema) != 4 || binary.BigEndian.Uint32(schema) == 0 {
		return 0, damaged("schema")
	}
	v := binary.BigEndian.Uint32(schema)
	least := v
	if b := meta.Get(keyReadable); len(b) == 4 {
		least = binary.BigEndian.Uint32(b)
	}
	if v > Schema && least > Schema {
		return 0, &NewerError{s.config.Path, v}
	}
	return v, nil
}

// upgrade brings a file of an older schema to this one, in one transaction: it is of one or of the
// other, whatever happens meanwhile.
func (s *Store) upgrade() error {
	var from uint32
	err := s.db.View(func(tx *bbolt.Tx) (err error) {
		from, err = s.schemaOf(tx)
		return err
	})
	if err != nil || from >= Schema {
		return err
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		if from < 2 { // tokens came
			if _, err := tx.CreateBucketIfNotExists(bucketTokens); err != nil {
				return err
			}
		}
		return putSchema(tx.Bucket(bucketMeta))
	})
	if err != nil {
		return fmt.Errorf("upgrade state %s from schema %d to %d: %w; nothing was changed", s.config.Path, from, Schema, err)
	}
	s.log.Info("upgraded the state", "path", s.config.Path, "from", from, "to", Schema)
	return nil
}

func putSchema(meta *bbolt.Bucket) error {
	if err := meta.Put(keySchema, binary.BigEndian.AppendUint32(nil, Schema)); err != nil {
		return err
	}
	return meta.Put(keyReadable, binary.BigEndian.AppendUint32(nil, readableBy))
}
