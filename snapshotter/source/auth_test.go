package source

import (
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
	w := &world{life: 30 * time.Second, passwords: map[string]string{"me": "secret-me"}, see: map[string]int{}}
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
	if req.URL.Host == "tokens.test" {
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
		rec.Header().Set("WWW-Authenticate", `Bearer realm="http://tokens.test/token",service="x",scope="repository:team/app:pull"`)
	}
	if user == "" {
		w.denied++
		rec.WriteHeader(http.StatusUnauthorized)
	} else if s := w.see[strings.TrimPrefix(user, "user ")]; s != 0 {
		rec.WriteHeader(s)
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
	return errs
}

func me() []Credential { return []Credential{{"me", "secret-me"}} }

// Readers never see the end of a token: one request is refused at the beginning.
func TestTokenRenewedAhead(t *testing.T) {
	for name, edit := range map[string]func(*world){
		"30 s":       func(*world) {},
		"2 s":        func(w *world) { w.life = 2 * time.Second },
		"not told":   func(w *world) { w.life, w.untold = time.Minute, true },
		"an hour":    func(w *world) { w.life = time.Hour },
		"basic auth": func(w *world) { w.basic = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				edit(w)
				c := newClient(t, w, me())
				if errs := c.readFor(10*time.Minute, 4); len(errs) > 0 {
					t.Errorf("%d errors: %v", len(errs), errs[0])
				}
				if most := int(10*time.Minute/(w.life*6/10)) + 1; w.given > most && !w.basic {
					t.Errorf("%d tokens, want at most %d", w.given, most)
				}
				// The four that begin at once do so without a token.
				if w.denied > 4 {
					t.Errorf("%d requests were refused", w.denied)
				}
				// After a pause there is one new token, and no refusal.
				given, denied := w.given, w.denied
				time.Sleep(3 * time.Hour)
				if errs := c.readFor(time.Second, 1); len(errs) > 0 || w.denied != denied && !w.untold || w.given > given+1 {
					t.Errorf("after a pause: %v, %d refused, %d tokens", errs, w.denied-denied, w.given-given)
				}
			})
		})
	}
}

// A token server that is away is asked seldom; readers go on with the token they
// have, then wait, and none of them fails.
func TestTokenServerDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := newClient(t, w, me())
		if errs := c.readFor(15*time.Second, 4); len(errs) > 0 {
			t.Fatal(errs[0])
		}
		w.set(func() { w.down, w.asked = true, 0 })
		done := make(chan []error)
		go func() { done <- c.readFor(time.Minute, 4) }()
		time.Sleep(30 * time.Second)
		if l := c.errs.List(); len(l) != 1 || !strings.Contains(l[0].Message, "503") || l[0].Repo != "team/app" || l[0].Host != "registry.test" {
			t.Errorf("reported: %+v", l)
		}
		w.set(func() {
			if w.asked > 8 {
				t.Errorf("asked %d times in 30 s", w.asked)
			}
			w.down = false
		})
		if errs := <-done; len(errs) > 0 {
			t.Errorf("%d errors: %v", len(errs), errs[0])
		}
		if l := c.errs.List(); len(l) != 0 {
			t.Errorf("still reported: %+v", l)
		}
	})
}

// What a token server says in Retry-After is obeyed, across new connections too.
func TestTokenServerRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.down, w.pause = true, "20"
		c := newClient(t, w, me())
		began := time.Now()
		go func() {
			time.Sleep(5 * time.Second)
			w.set(func() { w.down = false })
		}()
		if err := c.read(); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d < 20*time.Second || w.asked != 2 {
			t.Errorf("asked %d times within %s", w.asked, d)
		}
	})
	if d := retryAfter("Thu, 01 Jan 1970 00:00:00 GMT"); d != 0 {
		t.Errorf("a date in the past: %s", d)
	}
	if d := retryAfter(time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)); d < 50*time.Minute {
		t.Errorf("a date in an hour: %s", d)
	}
	if d := retryAfter("soon"); d != 0 {
		t.Errorf("nonsense: %s", d)
	}
}

// Of several credentials the right one is found without an error of any reader,
// remembered, and found again when it changes.
func TestCandidatesInTurn(t *testing.T) {
	list := []Credential{{"old", "secret-old"}, {"other", "secret-other"}, {"hidden", "secret-hidden"}, {"me", "secret-me"}, {"old", "secret-old"}}
	for name, edit := range map[string]func(*world){
		"wrong passwords": func(*world) {},
		"no rights": func(w *world) {
			w.passwords["other"], w.see["other"] = "secret-other", http.StatusForbidden
			w.passwords["hidden"], w.see["hidden"] = "secret-hidden", http.StatusNotFound
		},
		"basic": func(w *world) { w.basic = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				edit(w)
				c := newClient(t, w, list)
				if errs := c.readFor(10*time.Minute, 8); len(errs) > 0 {
					t.Errorf("%d errors: %v", len(errs), errs[0])
				}
				// The wrong ones are tried once: a password by both ways to get a
				// token, by Basic on the registry. Eight begin at once.
				if w.refused > 6 || w.denied > 8+3 {
					t.Errorf("%d tokens, %d passwords and %d requests were refused", w.given, w.refused, w.denied)
				}
				if l := c.errs.List(); len(l) > 0 {
					t.Errorf("reported: %v", l)
				}
			})
		})
	}
}

// Wrong credentials are named, without the secret, and not tried for every read;
// new ones are tried at once.
func TestWrongCredentialsAreLeftAlone(t *testing.T) {
	for _, basic := range []bool{false, true} {
		t.Run(fmt.Sprint("basic ", basic), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.basic = basic
				creds := []Credential{{"me", "secret-wrong"}}
				c := newClient(t, w, creds)
				errs := c.readFor(10*time.Minute, 2)
				if len(errs) == 0 || w.asked > 60 {
					t.Fatalf("%d errors, %d questions for a token in ten minutes", len(errs), w.asked)
				}
				last := errs[len(errs)-1]
				if !basic && !errors.Is(last, docker.ErrInvalidAuthorization) {
					t.Errorf("error: %v", last)
				}
				l := c.errs.List()
				if len(l) != 1 || !strings.Contains(l[0].Message, "registry registry.test refuses the credentials for team/app: ") || l[0].Count < 2 {
					t.Errorf("reported: %+v", l)
				}
				creds[0].Secret = "secret-me"
				if err := c.read(); err != nil {
					t.Errorf("with the right password: %v", err)
				}
				if l := c.errs.List(); len(l) > 0 {
					t.Errorf("still reported: %+v", l)
				}
				if all := fmt.Sprint(errs, c.log, l); strings.Contains(all, "secret") {
					t.Error("a secret is told")
				}
			})
		})
	}
}

// With no credentials at all the registry is asked for a token all the same.
func TestNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := newClient(t, w)
		if err := c.read(); err == nil || !strings.Contains(err.Error(), "none are known") {
			t.Errorf("private: %v", err)
		}
		w.passwords[""] = ""
		time.Sleep(2 * time.Minute)
		if err := c.read(); err != nil {
			t.Errorf("public: %v", err)
		}
	})
}

// A place that cannot answer does not hide that an image is public, and is named
// where it is not.
func TestPlaceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		c := newClient(t, w)
		c.keys.ask = func(context.Context, string, string) ([]Credential, error) {
			return nil, errors.New("vault is sealed")
		}
		if err := c.read(); err == nil || !strings.Contains(err.Error(), "vault is sealed") {
			t.Errorf("private: %v", err)
		}
		w.passwords[""] = ""
		time.Sleep(2 * time.Minute)
		if err := c.read(); err != nil {
			t.Errorf("public: %v", err)
		}
	})
}

// Rights that are withdrawn from one user and given to another.
func TestRightsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.passwords["you"], w.see["you"] = "secret-you", http.StatusForbidden
		c := newClient(t, w, me(), []Credential{{"you", "secret-you"}})
		if err := c.read(); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.see["me"], w.see["you"] = http.StatusForbidden, 0 })
		if err := c.read(); err == nil {
			t.Error("a read with withdrawn rights succeeds")
		}
		if err := c.read(); err != nil {
			t.Errorf("the other user: %v", err)
		}
	})
}
