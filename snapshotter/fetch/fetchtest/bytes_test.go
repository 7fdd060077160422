package fetchtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/apparate/apparate/snapshotter/fetch"
)

func TestBytes(t *testing.T) {
	Suite(t, func(data []byte) fetch.Blob { return NewBytes(data) })
}

func TestBytesFaults(t *testing.T) {
	data := Random(1000)
	read := func(b fetch.Blob) ([]byte, error) {
		p := make([]byte, 100)
		err := fetch.ReadAt(t.Context(), b, p, 50)
		return p, err
	}
	b := NewBytes(data)
	b.OnIndex(1, Fault{})
	b.OnIndex(2, Fault{After: 40, Err: io.ErrUnexpectedEOF})
	b.OnIndex(3, Fault{Flip: true})
	if p, err := read(b); err != nil || !bytes.Equal(p, data[50:150]) {
		t.Errorf("0: %v", err)
	}
	_, err := read(b)
	if e, ok := errors.AsType[*fetch.Error](err); !ok || !e.Temporary || !errors.Is(err, ErrInjected) {
		t.Errorf("1: %v", err)
	}
	if p, err := read(b); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(p[:40], data[50:90]) {
		t.Errorf("2: %v", err)
	}
	if p, err := read(b); err != nil || bytes.Equal(p, data[50:150]) {
		t.Errorf("3: %v, want one wrong byte", err)
	}
	if b.Count() != 4 || b.Opens()[3] != (Range{50, 100}) || b.Unclosed() != 0 || b.Parallel() != 1 || b.Delivered() != 240 {
		t.Errorf("counts: %d %v %d %d %d", b.Count(), b.Opens(), b.Unclosed(), b.Parallel(), b.Delivered())
	}
	b.Toggle(&Fault{})
	if _, err := read(b); !errors.Is(err, ErrInjected) {
		t.Errorf("toggled on: %v", err)
	}
	b.Toggle(nil)
	if _, err := read(b); err != nil {
		t.Errorf("toggled off: %v", err)
	}

	b.Toggle(&Fault{Block: true, After: 10})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := b.Open(ctx, 0, 20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	go cancel()
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("blocked: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
