package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/apparate/apparate/snapshotter/images"
	"github.com/apparate/apparate/snapshotter/source"
)

// daemonStatus is what the daemon says of itself at /status, as JSON.
type daemonStatus struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
	Root    string    `json:"root"`
	// DataPath is how images are mounted, "" when they are not; then NotLazy says why.
	DataPath string `json:"dataPath"`
	NotLazy  string `json:"notLazy,omitempty"`
	// Images are mounted, Layers can be read; Local images are all here, so that new
	// containers read them without the daemon. CacheBytes is what is taken on disk,
	// FetchedBytes what was fetched, compressed, since the daemon started.
	Images       int   `json:"images"`
	Layers       int   `json:"layers"`
	Local        int   `json:"local"`
	CacheBytes   int64 `json:"cacheBytes"`
	FetchedBytes int64 `json:"fetchedBytes"`
	// Errors are the repositories with trouble, the newest first.
	Errors []source.LastError `json:"errors,omitempty"`
}

// statusSource is where the figures of a status come from.
type statusSource struct {
	about  daemonStatus
	images *images.Manager // nil when nothing is lazy
	errors *source.LastErrors
}

func (s *statusSource) now() daemonStatus {
	st := s.about
	st.Errors = s.errors.List()
	if s.images != nil {
		i := s.images.Stats()
		st.Images, st.Layers, st.Local, st.CacheBytes, st.FetchedBytes = i.Images, i.Layers, i.Local, i.CacheBytes, i.FetchedBytes
	}
	return st
}

// ServeHTTP implements http.Handler.
func (s *statusSource) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s.now()) // whoever asked has gone away
}

// statusAddress is where the status of a snapshotter with the default --address is.
const statusAddress = "/run/apparate/status.sock"

// serveStatus answers /status, /metrics and /healthz on a unix socket that only
// root may use, until the returned function is called. A socket that another daemon
// left is replaced.
func serveStatus(path string, mux http.Handler, log *slog.Logger) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("--status-address: %w", err)
	}
	// Under another name first: nobody may connect while its mode is another.
	made := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--status-address: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("--status-address: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("--status-address: %w", err), l.Close(), os.Remove(made))
	}
	stopServing := serveHTTP(l, mux, log)
	return func() {
		stopServing()
		if err := os.Remove(path); err != nil {
			log.Warn("remove the status socket", "error", err)
		}
	}, nil
}

// serveHTTP serves on l until the returned function is called.
func serveHTTP(l net.Listener, h http.Handler, log *slog.Logger) (stop func()) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error("status and metrics are not served any more", "address", l.Addr(), "error", err)
		}
	}()
	return func() {
		if err := srv.Close(); err != nil {
			log.Warn("close the status address", "address", l.Addr(), "error", err)
		}
		<-done
	}
}
