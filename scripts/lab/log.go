package main

import (
	"strings"
	"sync"
)

// logBuffer keeps the last of what a process wrote, for when it is asked about.
type logBuffer struct {
	mutex sync.Mutex
	bytes []byte
}

const logKept = 8 << 10

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.bytes = append(l.bytes, b...)
	if extra := len(l.bytes) - logKept; extra > 0 {
		l.bytes = l.bytes[extra:]
	}
	return len(b), nil
}

func (l *logBuffer) String() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return strings.TrimSpace(string(l.bytes))
}
