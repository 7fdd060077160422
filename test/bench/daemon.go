package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// errNotServed means that a daemon does not know what it was asked for.
var errNotServed = errors.New("not served")

// ask gets a path from a daemon that serves HTTP on a unix socket.
func ask(ctx context.Context, socket, path string) (body []byte, err error) {
	const most = 64 << 20
	t := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon"+path, nil)
	if err != nil {
		return nil, err
	}
	a, err := (&http.Client{Transport: t}).Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Body.Close()) }()
	switch a.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", path, errNotServed)
	default:
		return nil, fmt.Errorf("%s: %s", path, a.Status)
	}
	return io.ReadAll(io.LimitReader(a.Body, most))
}

// serves waits until a daemon has its socket, which its holder's answering does not say, and
// says whether it knows a path.
func serves(ctx context.Context, socket, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		_, err := ask(ctx, socket, path)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// counters reads the snapshotter's own metrics from Prometheus's text format; those
// with labels are left out.
func counters(text string) map[string]float64 {
	all := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		name, ours := strings.CutPrefix(name, "apparate_snapshotter_")
		if !ok || !ours || strings.Contains(name, "{") {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			all[name] = v
		}
	}
	return all
}
