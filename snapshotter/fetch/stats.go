package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Stats are hooks for metrics and traces; each may be nil. They are called in
// parallel, on the path of the read: they must not block.
type Stats struct {
	// Request is called when one HTTP exchange ended: every attempt, redirect
	// and 401 counts.
	Request func(Request)
	// Read is called when the stream of one Open was closed, or could not be opened.
	Read func(Read)
}

// Request is one HTTP exchange.
type Request struct {
	// Host was asked for Range ("bytes=0-99").
	Host, Range string
	// Status is the HTTP status, 0 when no answer came.
	Status int
	// Bytes are those of the blob that arrived.
	Bytes int64
	// Duration is from sending the request to the end of its body.
	Duration time.Duration
}

// Read is one Open and what its stream delivered.
type Read struct {
	// Off and N are the range in bytes.
	Off, N int64
	// Bytes were delivered; fewer than N after an early close or an error.
	Bytes int64
	// Duration is from Open to Close.
	Duration time.Duration
	// Err is why the read failed, nil if it did not.
	Err error
}

// measure reports every read to cfg.Stats.Read.
func measure(cfg Config, next opener) opener {
	report := cfg.Stats.Read
	if report == nil {
		return next
	}
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		start := time.Now()
		r, err := next(ctx, off, n)
		if err != nil {
			report(Read{Off: off, N: n, Duration: time.Since(start), Err: err})
			return nil, err
		}
		m := &measured{ReadCloser: r, read: Read{Off: off, N: n}}
		m.done = sync.OnceFunc(func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.read.Duration = time.Since(start)
			report(m.read)
		})
		return m, nil
	}
}

// measured counts the bytes of one read. The lock is for a Close that wakes a
// Read of another goroutine.
type measured struct {
	io.ReadCloser
	done func()
	mu   sync.Mutex
	read Read
}

func (m *measured) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.read.Bytes += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		m.read.Err = err
	}
	return n, err
}

func (m *measured) Close() error {
	err := m.ReadCloser.Close()
	m.done()
	return err
}

// exchange reports one HTTP exchange to Stats.Request when it ends.
type exchange struct {
	report func(Request)
	start  time.Time
	Request
}

func (s Stats) begin(host, rng string) *exchange {
	return &exchange{report: s.Request, start: time.Now(), Request: Request{Host: host, Range: rng}}
}

// end reports the exchange; resp is nil where no answer came.
func (e *exchange) end(resp *http.Response) {
	if e.report == nil {
		return
	}
	if resp != nil {
		e.Status = resp.StatusCode
	}
	e.Duration = time.Since(e.start)
	e.report(e.Request)
}
