// Package fetch reads byte ranges of one registry blob over HTTP.
//
// Registries are many and their storage behind them more: they redirect to URLs
// that run out, let tokens expire, cut streams off, ignore ranges. A program that
// waits for a page of its own executable must see nothing of that. So New stacks
// small layers (see stack), each with one promise, and the sum of them is that of
// Blob: exactly the bytes asked for, or an error that says why, in bounded time.
//
// Whether the bytes are the right ones only their digest can tell; that is
// checked by the reader, above this package.
package fetch

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Blob is a remote blob that can be read in ranges. Parallel calls are allowed.
type Blob interface {
	// Open returns a reader of exactly n bytes from off. The reader yields all n
	// bytes and then io.EOF, or an error that says why not, never less without an
	// error, and never bytes of another range. It ends when ctx does. The caller closes it;
	// closing early is allowed and frees the connection.
	Open(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Size is the length of the blob in bytes.
	Size() int64
	// Close frees what the blob holds; reads under way fail.
	Close() error
}

// ReadAt fills p from off of b: all of p or an error.
func ReadAt(ctx context.Context, b Blob, p []byte, off int64) error {
	r, err := b.Open(ctx, off, int64(len(p)))
	if err != nil {
		return err
	}
	_, err = io.ReadFull(r, p)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return err
}

// Error is an answer of a registry that is not the bytes asked for. Its text
// never holds credentials or the query of a signed URL.
type Error struct {
	// Host is whom we asked, Range what for ("bytes=0-99").
	Host, Range string
	// Status is the HTTP status, 0 when no answer came.
	Status int
	// Temporary says that the same request may succeed later.
	Temporary bool
	// RetryAfter is what the registry asked us to wait; 0 when it did not.
	RetryAfter time.Duration
	// Err is the cause; never nil.
	Err error
}

// Error says what failed at which registry.
func (e *Error) Error() string {
	if e.Status != 0 {
		return fmt.Sprintf("registry %s, %s: HTTP %d: %v", e.Host, e.Range, e.Status, e.Err)
	}
	return fmt.Sprintf("registry %s, %s: %v", e.Host, e.Range, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
