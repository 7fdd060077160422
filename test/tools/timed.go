package tools

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// timed is a writer of progress lines.
type timed struct {
	w     io.Writer
	start time.Time
	mu    sync.Mutex
}

// Timed returns a writer that takes whole lines and writes each to w behind the
// seconds since now.
func Timed(w io.Writer) io.Writer { return &timed{w: w, start: time.Now()} }

func (t *timed) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for line := range bytes.Lines(b) {
		if _, err := fmt.Fprintf(t.w, "%6.1fs  %s", time.Since(t.start).Seconds(), line); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}
