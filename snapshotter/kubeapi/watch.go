package kubeapi

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	// pageSize is how many objects are asked for at once.
	pageSize = 250
	// maxEvent is the longest event of a watch, in bytes: one object, which has at
	// most 3 MiB on its way into the server, as JSON.
	maxEvent = 16 << 20
	// watchTime is how long a watch lasts, up to twice as long: after that a lost
	// connection is noticed, whatever is between us and the server.
	watchTime = 5 * time.Minute
)

// List reads a collection, page after page, and calls f with each object. It
// returns the resource version at which Watch goes on. An error for which IsGone
// holds means that it changed too much meanwhile: begin again.
func (c *Client) List(ctx context.Context, path string, f func(raw json.RawMessage) error) (resourceVersion string, err error) {
	r := request{method: http.MethodGet, path: path, query: url.Values{"limit": {strconv.Itoa(pageSize)}}}
	for {
		var page struct {
			Metadata struct {
				ResourceVersion string `json:"resourceVersion"`
				Continue        string `json:"continue"`
			} `json:"metadata"`
			Items []json.RawMessage `json:"items"`
		}
		if err := c.do(ctx, r, &page); err != nil {
			return "", err
		}
		for _, raw := range page.Items {
			if err := f(raw); err != nil {
				return "", err
			}
		}
		if page.Metadata.Continue == "" {
			return page.Metadata.ResourceVersion, nil
		}
		r.query.Set("continue", page.Metadata.Continue)
		r.query["resourceVersion"] = nil // the token has it; both are refused
	}
}

// Watch calls f with the changes of a collection after resourceVersion: ADDED,
// MODIFIED and DELETED with the object, and BOOKMARK with an object of which only
// metadata.resourceVersion counts. It returns nil when the server ends it, after
// some minutes, and what f returned if that is an error. An error for which IsGone
// holds means that the version is too old: List again.
func (c *Client) Watch(ctx context.Context, path, resourceVersion string, f func(eventType string, raw json.RawMessage) error) error {
	last := watchTime + rand.N(watchTime)
	r := request{method: http.MethodGet, path: path, query: url.Values{
		"watch": {"true"}, "allowWatchBookmarks": {"true"}, "resourceVersion": {resourceVersion},
		"timeoutSeconds": {strconv.Itoa(int(last.Seconds()))},
	}}
	ctx, cancel := context.WithTimeout(ctx, last+timeout)
	defer cancel()
	// The answer begins at once, even if there is no event.
	unanswered := time.AfterFunc(timeout, cancel)
	resp, err := c.open(ctx, r)
	if !unanswered.Stop() && err == nil {
		err = errors.Join(r.failed(context.DeadlineExceeded), resp.Body.Close())
	}
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // nothing of it is missed
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, maxEvent)
	for in.Scan() {
		if len(in.Bytes()) == 0 {
			continue
		}
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			err = cmp.Or(in.Err(), err) // half a line is the end of a connection
			return r.failed(fmt.Errorf("an event cannot be read: %w", err))
		}
		if e.Type == "ERROR" {
			var s status
			if err := json.Unmarshal(e.Object, &s); err != nil {
				return r.failed(fmt.Errorf("an error cannot be read: %w", err))
			}
			return r.failed(s.error(s.Code))
		}
		if err := f(e.Type, e.Object); err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return r.failed(fmt.Errorf("watching: %w", err))
	}
	return nil
}
