package source

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

const (
	// idlePlugin is how long a plugin's answer is renewed when nobody asks for it,
	// at least: a container that reads now and then should not wait for a plugin.
	idlePlugin = 10 * time.Minute
	// pluginPatience is how long somebody who asks waits for the next try after a
	// failure; and the age from which an answer may be asked for anew.
	pluginPatience = 5 * time.Second
	// maxPluginKeys is how many answers of one plugin are kept.
	maxPluginKeys = 4096
)

// plugin asks one credential provider plugin and keeps its answers. An answer
// that is in use is renewed in the background before it ends.
type plugin struct {
	pluginConfig
	path    string
	timeout time.Duration
	ask     func(context.Context, imageName) (answer, error) // exec
	log     *slog.Logger
	report  func(what string, err error)

	life context.Context // of what runs in the background
	end  context.CancelFunc
	runs sync.WaitGroup

	flights singleflight.Group

	mu      sync.Mutex
	closed  bool
	kind    string             // cacheKeyType of the last answer; "" before the first
	answers map[string]*cached // by cache key
	failed  map[string]failure // by repository
}

// cached is an answer that is kept.
type cached struct {
	answer
	name  imageName // for which it was asked
	key   string
	began time.Time
	end   time.Time
	life  time.Duration
	used  time.Time // when it was asked for last
	timer *time.Timer
	tries int // renewals that failed
}

// failure keeps a plugin that does not work from being run for every read.
type failure struct {
	err   error
	tries int
	until time.Time
}

func newPlugin(c pluginConfig, path string, log *slog.Logger, report func(string, error)) *plugin {
	p := &plugin{
		pluginConfig: c, path: path, timeout: pluginTimeout, log: log, report: report,
		answers: map[string]*cached{}, failed: map[string]failure{},
	}
	p.ask = p.exec
	p.life, p.end = context.WithCancel(context.Background())
	return p
}

// same says whether o is configured as p is.
func (p *plugin) same(o *plugin) bool {
	return p.path == o.path && reflect.DeepEqual(p.pluginConfig, o.pluginConfig)
}

func (p *plugin) origin() string { return "credential provider " + p.Name }

// key is under what an answer with the given cacheKeyType is kept.
func cacheKey(kind string, n imageName) string {
	switch kind {
	case cacheGlobal:
		return kind
	case cacheRegistry:
		return kind + " " + n.host
	}
	return cacheImage + " " + n.String()
}

// credentials returns what the plugin knows of n, running it if need be.
func (p *plugin) credentials(ctx context.Context, n imageName) ([]Credential, error) {
	if err := p.usable(); err != nil {
		err = fmt.Errorf("%s: %w", p.origin(), err)
		p.report(p.origin(), err)
		return nil, err
	}
	for {
		a, flight, failed := p.lookup(n)
		if a != nil {
			return a.choose(n), nil
		}
		if wait := time.Until(failed.until); wait > pluginPatience {
			return nil, failed.err
		} else if wait > 0 && !sleep(ctx, wait) {
			return nil, fmt.Errorf("%w (%w)", failed.err, context.Cause(ctx))
		}
		done := p.flights.DoChan(flight, func() (any, error) { return p.run(n) })
		select {
		case r := <-done:
			if r.Err != nil {
				return nil, r.Err
			}
			// The answer may be another repository's, if the first one was asked
			// for before it was known for how many it holds.
			if c, ok := r.Val.(*cached); ok && c.key == cacheKey(c.cacheType, n) {
				return c.choose(n), nil
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", p.origin(), context.Cause(ctx))
		}
	}
}

// choose returns the credentials for n, best first.
func (c *cached) choose(n imageName) []Credential {
	if c == nil {
		return nil
	}
	var creds []Credential
	for _, e := range c.entries {
		if e.begins(n) {
			creds = append(creds, e.Credential)
		}
	}
	return creds
}

// lookup returns a good answer for n, or else its last failure and under which
// name to run the plugin: until its first answer says for how many it holds, one
// run serves all who ask.
func (p *plugin) lookup(n imageName) (c *cached, flight string, failed failure) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, kind := range []string{cacheImage, cacheRegistry, cacheGlobal} {
		if c := p.answers[cacheKey(kind, n)]; c != nil && now.Before(c.end) {
			c.used = now
			return c, "", failure{}
		}
	}
	flight = "first"
	if p.kind != "" {
		flight = cacheKey(p.kind, n)
	}
	return nil, flight, p.failed[n.String()]
}

// doubt forgets an answer with a credential that the registry has refused, so
// that the next one who asks gets a new one. A new answer is kept: asking the
// plugin again would bring the same.
func (p *plugin) doubt(n imageName, refused Credential) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, kind := range []string{cacheImage, cacheRegistry, cacheGlobal} {
		c := p.answers[cacheKey(kind, n)]
		if c != nil && time.Since(c.began) > pluginPatience && slices.Contains(c.choose(n), refused) {
			c.timer.Stop()
			delete(p.answers, c.key)
		}
	}
}

// run runs the plugin for n and keeps its answer or its failure.
func (p *plugin) run(n imageName) (*cached, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, fmt.Errorf("%s: it is not configured any more", p.origin())
	}
	p.runs.Add(1)
	p.mu.Unlock()
	defer p.runs.Done()

	began := time.Now() // the answer's life may begin that early
	a, err := p.ask(p.life, n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%s: %w", p.origin(), err)
		if !p.closed {
			p.fail(n, err)
		}
		return nil, err
	}
	delete(p.failed, n.String())
	p.report(p.origin(), nil)
	p.kind = a.cacheType
	c := &cached{answer: a, name: n, key: cacheKey(a.cacheType, n), began: began, life: time.Duration(*p.DefaultCacheDuration), used: time.Now()}
	if a.life != nil {
		c.life = time.Duration(*a.life)
	}
	c.end = began.Add(max(0, c.life))
	p.keep(c)
	return c, nil
}

// fail notes a failure. The lock is held.
func (p *plugin) fail(n imageName, err error) {
	p.report(p.origin(), err)
	f := p.failed[n.String()]
	f.err = err
	f.until = time.Now().Add(backoff(f.tries))
	f.tries++
	if len(p.failed) >= maxPluginKeys {
		clear(p.failed)
	}
	p.failed[n.String()] = f
}

// keep stores an answer and plans its renewal. The lock is held.
func (p *plugin) keep(c *cached) {
	old := p.answers[c.key]
	if old != nil {
		old.timer.Stop()
		if time.Now().Before(old.end) {
			c.used = old.used // this is a renewal, which is no use
		}
		delete(p.answers, c.key)
	}
	if c.life <= 0 || p.closed || len(p.answers) >= maxPluginKeys {
		return
	}
	p.answers[c.key] = c
	p.plan(c, time.Until(c.end)-time.Duration(float64(c.life)*(0.3+rand.Float64()/10)))
}

// plan has the answer renewed after d, or forgotten. The lock is held.
func (p *plugin) plan(c *cached, d time.Duration) {
	c.timer = time.AfterFunc(max(d, 0), func() {
		p.mu.Lock()
		now := time.Now()
		switch {
		case p.closed || p.answers[c.key] != c:
			p.mu.Unlock()
			return
		case !now.Before(c.end):
			delete(p.answers, c.key)
			p.mu.Unlock()
			return
		case now.Sub(c.used) > max(c.life, idlePlugin):
			p.plan(c, time.Until(c.end)) // nobody needs it
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		p.renew(c)
	})
}

// renew runs the plugin for an answer that still holds. If that fails the answer
// stays, and there is another try before it ends.
func (p *plugin) renew(c *cached) {
	_, err, _ := p.flights.Do(c.key, func() (any, error) { return p.run(c.name) })
	if err == nil {
		return // run has planned the next renewal
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.answers[c.key] != c {
		return
	}
	p.log.Warn("credentials are not renewed: those there are hold a while", "until", c.end, "error", err)
	wait := backoff(c.tries)
	c.tries++
	p.plan(c, min(wait, time.Until(c.end)))
}

// secrets are the passwords of all answers.
func (p *plugin) secrets() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var s []string
	for _, c := range p.answers {
		s = append(s, c.secrets()...)
	}
	return s
}

// close ends what runs in the background and waits for it.
func (p *plugin) close() {
	p.mu.Lock()
	p.closed = true
	for _, c := range p.answers {
		c.timer.Stop()
	}
	clear(p.answers)
	p.mu.Unlock()
	p.end()
	p.runs.Wait()
}

// backoff is how long to wait after a failure that followed tries others: a
// second, doubled each time up to a minute, spread by half.
func backoff(tries int) time.Duration {
	d := min(time.Second<<min(tries, 6), time.Minute)
	return d/2 + rand.N(d/2+1)
}

// sleep waits for d, and says whether ctx allowed that.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
