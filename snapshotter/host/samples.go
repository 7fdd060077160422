package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Samples asks the daemon what starts read whose recording ended since then, and calls
// each with every one of them, an api/profile.Sample as JSON. Earlier ones may be among
// them. A daemon that is older has none.
func (m *Machine) Samples(ctx context.Context, since time.Time, each func(json.RawMessage) error) (err error) {
	const most = 256 << 20
	query := url.Values{"since": {since.UTC().Format(time.RFC3339Nano)}}
	resp, err := requestDaemon(ctx, "/samples?"+query.Encode())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil
	default:
		return fmt.Errorf("the snapshotter answers %s for samples", resp.Status)
	}
	return eachElement(io.LimitReader(resp.Body, most), each)
}

// eachElement calls f with the elements of a JSON array, one after the other: all of
// them at once may be large.
func eachElement(r io.Reader, f func(json.RawMessage) error) error {
	d := json.NewDecoder(r)
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("the snapshotter's samples begin with %v, %w", t, err)
	}
	for d.More() {
		var one json.RawMessage
		if err := d.Decode(&one); err != nil {
			return fmt.Errorf("the snapshotter's samples: %w", err)
		}
		if err := f(one); err != nil {
			return err
		}
	}
	return nil
}
