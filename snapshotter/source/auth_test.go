package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/snapshotter/fetch"
)

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

// A mirror's path is part of the repository's name there.
func TestRepositoryOnMirror(t *testing.T) {
	r := New(Options{DockerConfig: t.TempDir()})
	t.Cleanup(r.Close)
	for path, want := range map[string]string{
		"/v2": "team/app", "/v2/": "team/app", "": "team/app", "/v2/proxy": "proxy/team/app", "/v2/a/b/": "a/b/team/app", "/api": "api/team/app",
	} {
		h := docker.RegistryHost{Client: &http.Client{}, Host: "mirror.test", Path: path}
		r.authorize(&h, "team/app")
		if a := h.Authorizer.(*auth); a.repo != want || a.scope != "repository:"+want+":pull" {
			t.Errorf("%q: %s, %s", path, a.repo, a.scope)
		}
	}
}

// Reads over a real connection outlast a token server that is away for a while,
// at their very first token and at a later one.
func TestReadOutlastsTokenServer(t *testing.T) {
	w := newWorld()
	srv := httptest.NewServer(w)
	t.Cleanup(srv.Close)
	w.realm, w.body, w.life, w.down = srv.URL, bytes.Repeat([]byte("x"), 1000), time.Second, true
	r := New(Options{
		HostsDirs: []string{t.TempDir()}, DockerConfig: t.TempDir(), Logger: slog.New(slog.DiscardHandler),
		Credentials: func(context.Context, string, string) ([]Credential, error) { return me(), nil },
	})
	t.Cleanup(r.Close)
	b, err := r.Open(t.Context(), srv.Listener.Addr().String()+"/team/app:v1", digest.FromBytes(w.body), 1000)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		w.set(func() { w.down, w.asked = true, 0 })
		if round > 0 {
			time.Sleep(w.life) // so that the token has ended
		}
		back := time.AfterFunc(1500*time.Millisecond, func() { w.set(func() { w.down = false }) })
		var wg sync.WaitGroup
		for i := range int64(10) {
			wg.Go(func() {
				if err := fetch.ReadAt(t.Context(), b, make([]byte, 10), i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		back.Stop()
		w.set(func() {
			if w.asked > 8 {
				t.Errorf("round %d: the token server was asked %d times", round, w.asked)
			}
		})
	}
}
