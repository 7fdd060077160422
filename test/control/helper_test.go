package control

import (
	"archive/tar"
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"
)

// syncBuffer collects what a process prints.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// archive makes a tar of one file.
func archive(t testing.TB, file, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: file, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var errNone = errors.New("no error")

// orNone is err, or says that there is none.
func orNone(err error) error {
	if err == nil {
		return errNone
	}
	return err
}
