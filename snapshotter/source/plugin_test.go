package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// maker stands for a plugin's program: each run takes a while and gives out a new
// password.
type maker struct {
	mu     sync.Mutex
	kind   string
	life   time.Duration
	takes  time.Duration
	broken error
	runs   int
	made   map[string]time.Time
}

func (m *maker) ask(ctx context.Context, n imageName) (answer, error) {
	m.mu.Lock()
	m.runs++
	run, takes, broken := m.runs, m.takes, m.broken
	a := answer{cacheType: m.kind}
	if m.life != 0 {
		d := duration(m.life)
		a.life = &d
	}
	m.mu.Unlock()
	if !sleep(ctx, takes) {
		return answer{}, ctx.Err()
	}
	if broken != nil {
		return answer{}, broken
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := fmt.Sprint("password-", run)
	m.made[p] = time.Now()
	labels, port := splitHost(n.host)
	a.entries = []entry{{pattern{labels: labels, port: port}, Credential{"user", p}}}
	return a, nil
}

func (m *maker) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// count is how often the program ran.
func (m *maker) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.runs
}

// age is that of a password.
func (m *maker) age(password string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.made[password])
}

// newMade returns a plugin whose program is m.
func newMade(t *testing.T, m *maker) (*plugin, *LastErrors) {
	t.Helper()
	m.made = map[string]time.Time{}
	errs := NewLastErrors(3)
	life := duration(time.Minute)
	c := pluginConfig{Name: "made", APIVersion: protocols[0], MatchImages: []string{"*.test"}, DefaultCacheDuration: &life}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	p := newPlugin(c, "/made", slog.New(slog.DiscardHandler), func(what string, err error) { errs.Report("", what, err) })
	p.ask = m.ask
	t.Cleanup(p.close)
	return p, errs
}

// app is the i-th repository of a registry.
func app(i int) imageName { return imageName{"registry.test", fmt.Sprint("team/app", i)} }

// Who asks often never waits after the first time, and never gets a password that
// has ended; who asks no more ends the renewals.
func TestPluginRenewsAhead(t *testing.T) {
	for _, kind := range []string{cacheImage, cacheRegistry, cacheGlobal} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &maker{kind: kind, life: 20 * time.Second, takes: 2 * time.Second}
				p, errs := newMade(t, m)
				for i := range 600 {
					began := time.Now()
					creds, err := p.credentials(t.Context(), app(0))
					if err != nil || len(creds) != 1 {
						t.Fatalf("%v %v", creds, err)
					}
					if age := m.age(creds[0].Secret); age > m.life {
						t.Fatalf("a password of %s", age)
					}
					if took := time.Since(began); i > 0 && took > 0 {
						t.Errorf("question %d took %s", i, took)
					}
					time.Sleep(time.Second)
				}
				if most := 600/12 + 2; m.count() > most {
					t.Errorf("%d runs in ten minutes, want at most %d", m.count(), most)
				}
				time.Sleep(idlePlugin + time.Minute)
				runs := m.count()
				time.Sleep(time.Hour)
				if m.count() != runs {
					t.Errorf("%d runs though nobody asks", m.count()-runs)
				}
				if l := errs.List(); len(l) > 0 {
					t.Errorf("reported: %v", l)
				}
			})
		})
	}
}

// A renewal that fails leaves the password there is, and is tried again; with the
// program back all goes on. Once the password has ended, those who ask wait for
// the next try.
func TestPluginRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{kind: cacheRegistry, life: 5 * time.Minute}
		p, errs := newMade(t, m)
		get := func() (string, error) {
			creds, err := p.credentials(t.Context(), app(0))
			if err != nil {
				return "", err
			}
			return creds[0].Secret, nil
		}
		first, err := get()
		if err != nil {
			t.Fatal(err)
		}
		m.set(func() { m.broken = errors.New("exit status 1") })
		time.Sleep(280 * time.Second)
		if now, err := get(); now != first || err != nil {
			t.Errorf("while renewals fail: %q %v", now, err)
		}
		if m.count() < 3 || m.count() > 12 {
			t.Errorf("%d runs", m.count())
		}
		if l := errs.List(); len(l) != 1 || l[0].Repo != "credential provider made" || !strings.Contains(l[0].Message, "exit status 1") {
			t.Errorf("reported: %+v", l)
		}
		time.Sleep(21 * time.Second)
		if _, err := get(); err == nil {
			t.Error("an ended password is given out")
		}
		runs := m.count()
		for range 100 {
			if _, err := get(); err == nil {
				t.Error("a broken program answers")
			}
		}
		if m.count() > runs+5 {
			t.Errorf("100 questions ran it %d times", m.count()-runs)
		}
		m.set(func() { m.broken = nil })
		time.Sleep(time.Minute)
		if now, err := get(); err != nil || now == first {
			t.Errorf("with the program back: %q %v", now, err)
		}
		if l := errs.List(); len(l) > 0 {
			t.Errorf("still reported: %v", l)
		}
	})
}

// Many who ask at once run the program as seldom as its answers allow.
func TestPluginSingleFlight(t *testing.T) {
	for kind, want := range map[string]int{cacheImage: 10, cacheRegistry: 2, cacheGlobal: 1} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &maker{kind: kind, takes: time.Second, life: time.Hour}
				p, _ := newMade(t, m)
				p.match = append(p.match, pattern{labels: []string{"*", "other"}})
				var wg sync.WaitGroup
				for i := range 100 {
					wg.Go(func() {
						n := app(i % 10)
						if i%10 >= 5 {
							n.host = "registry.other"
						}
						if _, err := p.credentials(t.Context(), n); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if m.count() != want {
					t.Errorf("%d runs, want %d", m.count(), want)
				}
			})
		})
	}
}

func TestPluginDurations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{kind: cacheRegistry}
		p, _ := newMade(t, m) // the default is a minute
		ask := func() {
			t.Helper()
			if _, err := p.credentials(t.Context(), app(0)); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		time.Sleep(35 * time.Second)
		ask()
		if m.count() != 1 {
			t.Errorf("%d runs within the default duration", m.count())
		}
		m.set(func() { m.life = -1 })
		time.Sleep(time.Hour)
		m.set(func() { m.runs = 0 })
		for range 5 {
			ask()
		}
		if m.count() != 5 {
			t.Errorf("%d runs of 5 without a duration", m.count())
		}
	})
}

// A password that the registry refuses is asked for anew, but not one that is new.
func TestPluginDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{kind: cacheRegistry, life: time.Hour}
		p, _ := newMade(t, m)
		for want, wait := range []time.Duration{0, 0, time.Minute, 0} {
			creds, err := p.credentials(t.Context(), app(0))
			if err != nil {
				t.Fatal(err)
			}
			if runs := want/3 + 1; m.count() != runs {
				t.Errorf("step %d: %d runs, want %d", want, m.count(), runs)
			}
			time.Sleep(wait)
			p.doubt(app(0), creds[0])
			p.doubt(app(0), Credential{"user", "another"})
		}
	})
}

// A plugin that is closed ends its run, and answers nobody any more.
func TestPluginClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &maker{kind: cacheGlobal, takes: time.Hour}
		p, errs := newMade(t, m)
		done := make(chan error)
		go func() {
			_, err := p.credentials(context.Background(), app(0))
			done <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(errors.New("gave up"))
		if _, err := p.credentials(ctx, app(0)); err == nil || !strings.Contains(err.Error(), "gave up") {
			t.Errorf("who gives up: %v", err)
		}
		p.close()
		if err := <-done; err == nil {
			t.Error("a run outlives its plugin")
		}
		if _, err := p.credentials(context.Background(), app(0)); err == nil {
			t.Error("a closed plugin answers")
		}
		if l := errs.List(); len(l) > 0 {
			t.Errorf("reported: %v", l)
		}
	})
}
