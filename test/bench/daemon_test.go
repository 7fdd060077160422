package main

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// TestServes: a socket that is not there yet is waited for.
func TestServes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	mux := http.NewServeMux()
	mux.HandleFunc("/known", func(http.ResponseWriter, *http.Request) {})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	go func() {
		time.Sleep(50 * time.Millisecond)
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Error(err)
			return
		}
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	if err := serves(t.Context(), socket, "/known"); err != nil {
		t.Error(err)
	}
	if err := serves(t.Context(), socket, "/unknown"); !errors.Is(err, errNotServed) {
		t.Errorf("%v, want %v", err, errNotServed)
	}
}
