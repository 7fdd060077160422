package pullsecret

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// Follower reads the file again and again. A mounted Secret is replaced by
// renaming a link two directories above it, which is not an event of the file; it
// is small, so it is read every Interval.
type Follower struct {
	Path     string
	Interval time.Duration
	Log      logr.Logger
	Metrics  *Metrics

	now  atomic.Pointer[Config]
	last []byte
	seen string // the last error, told once
}

// Config is what the file said last that could be used; nil before that.
func (f *Follower) Config() *Config { return f.now.Load() }

// Run reads until ctx ends, and calls changed after each change.
func (f *Follower) Run(ctx context.Context, changed func()) {
	tick := time.NewTicker(f.Interval)
	defer tick.Stop()
	for {
		if f.read() {
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// read reports whether there is a new configuration. A file that is gone or
// cannot be read changes nothing: it may be on its way.
func (f *Follower) read() bool {
	text, err := readFile(f.Path)
	if err == nil && f.last != nil && bytes.Equal(text, f.last) {
		f.tell(nil)
		return false
	}
	var c *Config
	if err == nil {
		c, err = Parse(text)
	}
	if err != nil {
		f.tell(err)
		return false
	}
	f.tell(nil)
	f.last = append([]byte{}, text...)
	for _, m := range c.Mistakes {
		f.Log.Error(m, "a pull secret cannot be used", "file", f.Path)
	}
	f.Metrics.read(c)
	f.Log.Info("the list of pull secrets was read", "file", f.Path, "entries", len(c.Entries), "bad", len(c.Mistakes))
	f.now.Store(c)
	return true
}

// tell writes an error to the log when it comes up.
func (f *Follower) tell(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if err != nil && text != f.seen {
		f.Log.Error(err, "the list of pull secrets cannot be used: what was there stays", "file", f.Path)
	}
	f.Metrics.unreadable(err != nil)
	f.seen = text
	if err != nil {
		f.last = nil // the same text as before is told of again
	}
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--pull-secrets: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	text, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("--pull-secrets: %w", err)
	}
	return text, nil
}
