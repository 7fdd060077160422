package kubeapi_test

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/apparate/apparate/snapshotter/kubeapi"
)

func certificate(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// Pages follow each other, and a list that grew too old is told apart.
func TestPages(t *testing.T) {
	var queries []string
	c := odd(t, func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		switch r.URL.Query().Get("continue") {
		case "":
			answer(w, `{"metadata":{"resourceVersion":"7","continue":"next"},"items":[{"n":1},{"n":2}]}`)
		case "next":
			answer(w, `{"metadata":{"resourceVersion":"7","continue":"old"},"items":[{"n":3}]}`)
		default:
			w.WriteHeader(http.StatusGone)
		}
	})
	var got []string
	_, err := c.List(t.Context(), "/x?fieldSelector=a%3Db&resourceVersion=0", func(raw json.RawMessage) error {
		got = append(got, string(raw))
		return nil
	})
	if !kubeapi.IsGone(err) || strings.Join(got, "") != `{"n":1}{"n":2}{"n":3}` {
		t.Errorf("%v, %v", got, err)
	}
	want := []string{"fieldSelector=a%3Db&limit=250&resourceVersion=0", "continue=next&fieldSelector=a%3Db&limit=250", "continue=old&fieldSelector=a%3Db&limit=250"}
	if !reflect.DeepEqual(queries, want) {
		t.Errorf("asked for %q", queries)
	}
	stop := errors.New("enough")
	if _, err := c.List(t.Context(), "/x", func(json.RawMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error is %v", err)
	}
}

// What a watch says, in whatever state it ends.
func TestWatchEnds(t *testing.T) {
	event := func(n int) string { return fmt.Sprintf(`{"type":"ADDED","object":{"n":%d}}`+"\n", n) }
	gone := `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}` + "\n"
	tests := map[string]struct {
		body   string
		cut    bool
		events int
		want   string // of the error
	}{
		"end":        {event(1) + "\n" + event(2), false, 2, ""},
		"none":       {"", false, 0, ""},
		"gone":       {event(1) + gone + event(2), false, 1, "GET /x: too old resource version"},
		"no json":    {event(1) + "<html>\n", false, 1, "GET /x: an event cannot be read: "},
		"cut":        {event(1) + event(2)[:10], true, 1, "GET /x: an event cannot be read: unexpected EOF"},
		"cut at end": {event(1), true, 1, "GET /x: watching: unexpected EOF"},
		"odd error":  {`{"type":"ERROR","object":"x"}` + "\n", false, 0, "GET /x: an error cannot be read: "},
		"too long":   {event(1) + strings.Repeat("x", 17<<20), false, 1, "GET /x: watching: bufio.Scanner: token too long"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := odd(t, func(w http.ResponseWriter, r *http.Request) {
				if q := r.URL.Query(); q.Get("watch") != "true" || q.Get("resourceVersion") != "5" || q.Get("timeoutSeconds") == "" {
					t.Errorf("asked for %s", r.URL)
				}
				if test.cut {
					w.Header().Set("Content-Length", fmt.Sprint(len(test.body)+1))
				}
				answer(w, test.body)
			})
			n := 0
			err := c.Watch(t.Context(), "/x", "5", func(kind string, raw json.RawMessage) error {
				if n++; kind != "ADDED" || string(raw) != fmt.Sprintf(`{"n":%d}`, n) {
					t.Errorf("event %s %s", kind, raw)
				}
				return nil
			})
			if n != test.events || test.want == "" != (err == nil) || err != nil && !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("%d events, %v", n, err)
			}
			if kubeapi.IsGone(err) != (name == "gone") {
				t.Errorf("gone: %v", err)
			}
		})
	}
	refused := odd(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	if err := refused.Watch(t.Context(), "/x", "5", nil); !kubeapi.IsForbidden(err) {
		t.Errorf("refused: %v", err)
	}
	stop := errors.New("enough")
	c := odd(t, func(w http.ResponseWriter, _ *http.Request) { answer(w, event(1)) })
	if err := c.Watch(t.Context(), "/x", "5", func(string, json.RawMessage) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the caller's error is %v", err)
	}
}
