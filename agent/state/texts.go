package state

// words are what a claim says of who made it, and why.
type words struct{ actor, reason string }

// texts keeps each pair of words once; 0 is the empty one.
type texts struct {
	ids  map[words]uint32
	text []words
	refs []int32
	free []uint32
	last uint32 // handed out last: of many claims that are made at once, most say the same
}

func newTexts() texts {
	return texts{ids: map[words]uint32{}, text: []words{{}}, refs: []int32{1}}
}

func (t *texts) hold(w words) uint32 {
	if t.text[t.last] == w {
		if t.last != 0 {
			t.refs[t.last]++
		}
		return t.last
	}
	if w == (words{}) {
		return 0
	}
	id, ok := t.ids[w]
	if !ok {
		id = t.keep(w)
	}
	t.refs[id]++
	t.last = id
	return id
}

func (t *texts) keep(w words) (id uint32) {
	if n := len(t.free); n > 0 {
		id = t.free[n-1]
		t.free = t.free[:n-1]
		t.text[id] = w
	} else {
		id = uint32(len(t.text))
		t.text, t.refs = append(t.text, w), append(t.refs, 0)
	}
	t.ids[w] = id
	return id
}

func (t *texts) release(id uint32) {
	if id == 0 {
		return
	}
	if t.refs[id]--; t.refs[id] == 0 {
		delete(t.ids, t.text[id])
		t.text[id] = words{}
		t.free = append(t.free, id)
		if t.last == id {
			t.last = 0
		}
	}
}
