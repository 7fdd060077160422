package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// world is a registry and its token server, without a network: time in it is that
// of a synctest bubble.
type world struct {
	mu        sync.Mutex
	realm     string
	body      []byte // of the blob
	basic     bool
	life      time.Duration // of tokens
	untold    bool          // expires_in is left out
	down      bool          // the token server answers 503
	pause     string        // with this Retry-After
	passwords map[string]string
	see       map[string]int // status that a user gets; 0: 200
	tokens    map[string]struct {
		user string
		end  time.Time
	}
	asked, given, refused, denied, reads int
	askedAt                              []time.Time
}

func newWorld() *world {
	w := &world{realm: "http://tokens.test", life: 30 * time.Second, passwords: map[string]string{"me": "secret-me"}, see: map[string]int{}}
	w.tokens = map[string]struct {
		user string
		end  time.Time
	}{}
	return w
}

// RoundTrip answers at once.
func (w *world) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	rec := httptest.NewRecorder()
	if req.URL.Path == "/token" {
		w.token(rec, req)
	} else {
		w.reads++
		w.blob(rec, req)
	}
	resp := rec.Result()
	resp.Request = req
	return resp, nil
}

func (w *world) token(rec http.ResponseWriter, req *http.Request) {
	w.asked++
	w.askedAt = append(w.askedAt, time.Now())
	if w.down {
		rec.Header().Set("Retry-After", w.pause)
		rec.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.PostFormValue("username"), req.PostFormValue("password")
	}
	if p, ok := w.passwords[user]; !ok || p != password {
		w.refused++
		rec.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.given++
	t := fmt.Sprintf("secret-token-%d", w.given)
	w.tokens[t] = struct {
		user string
		end  time.Time
	}{"user " + user, time.Now().Add(w.life)}
	answer := map[string]any{"token": t, "access_token": t}
	if !w.untold {
		answer["expires_in"] = int(w.life / time.Second)
	}
	_ = json.NewEncoder(rec).Encode(answer)
}

func (w *world) blob(rec http.ResponseWriter, req *http.Request) {
	user := ""
	if w.basic {
		u, p, _ := req.BasicAuth()
		if want, ok := w.passwords[u]; ok && want == p {
			user = "user " + u
		}
		rec.Header().Set("WWW-Authenticate", `Basic realm="x"`)
	} else {
		t := w.tokens[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
		if time.Now().Before(t.end) {
			user = t.user
		}
		rec.Header().Set("WWW-Authenticate", `Bearer realm="`+w.realm+`/token",service="x",scope="repository:team/app:pull"`)
	}
	if user == "" {
		w.denied++
		rec.WriteHeader(http.StatusUnauthorized)
	} else if s := w.see[strings.TrimPrefix(user, "user ")]; s != 0 {
		rec.WriteHeader(s)
	} else if w.body != nil {
		http.ServeContent(rec, req, "", time.Time{}, bytes.NewReader(w.body))
	}
}

// ServeHTTP is the world on a real network.
func (w *world) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if req.URL.Path == "/token" {
		w.token(rw, req)
	} else {
		w.blob(rw, req)
	}
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// client reads from a world as package fetch does.
type client struct {
	*auth
	http *http.Client
	errs *LastErrors
	log  *strings.Builder
}

// newClient returns a client with the credentials of places.
func newClient(t *testing.T, w *world, places ...[]Credential) *client {
	t.Helper()
	c := &client{errs: NewLastErrors(5), log: &strings.Builder{}}
	r := New(Options{DockerConfig: t.TempDir(), Report: c.errs.Report, Logger: slog.New(slog.NewTextHandler(c.log, nil))})
	t.Cleanup(r.Close)
	r.keys.ask = func(context.Context, string, string) ([]Credential, error) {
		var all []Credential
		for _, p := range places {
			all = append(all, p...)
		}
		return all, nil
	}
	h := docker.RegistryHost{Client: &http.Client{Transport: w}, Host: "registry.test", Scheme: "http", Path: "/v2"}
	r.authorize(&h, "team/app")
	c.auth, c.http = h.Authorizer.(*auth), h.Client
	return c
}

// read tries a read up to five times, unless it is refused.
func (c *client) read() error {
	var err error
	for range 5 {
		if err = c.attempt(); err == nil || errors.Is(err, docker.ErrInvalidAuthorization) || errors.Is(err, errStatus) {
			return err
		}
	}
	return err
}

var errStatus = errors.New("HTTP status")

// attempt is a request, and another one after a 401.
func (c *client) attempt() error {
	for again := false; ; again = true {
		req, err := http.NewRequest(http.MethodGet, "http://registry.test/v2/team/app/blobs/sha256:x", nil)
		if err == nil {
			err = c.Authorize(context.Background(), req)
		}
		if err != nil {
			return err
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		switch {
		case resp.StatusCode == http.StatusOK:
			return nil
		case resp.StatusCode != http.StatusUnauthorized || again:
			return fmt.Errorf("%w %d", errStatus, resp.StatusCode)
		}
		if err := c.AddResponses(context.Background(), []*http.Response{resp}); err != nil {
			return err
		}
	}
}

// readFor reads by n readers for d, each every 100 ms, and returns their errors.
func (c *client) readFor(d time.Duration, n int) []error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				if err := c.read(); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	synctest.Wait() // for what goes on in the background
	return errs
}

func me() []Credential { return []Credential{{"me", "secret-me"}} }
