package watch_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/apparate/apparate/controllers/serve"
	"github.com/apparate/apparate/controllers/watch"
	"github.com/apparate/apparate/controllers/watch/dialect"
	"github.com/apparate/apparate/controllers/watch/watchtest"
)

const token = "a-long-token-of-tests"

func secrets(_ context.Context, key types.NamespacedName) ([][]byte, error) {
	if key == watchtest.Key {
		return [][]byte{[]byte(token)}, nil
	}
	return nil, nil
}

// newSender is an endpoint and a sender that repeats what is not taken.
func newSender(t *testing.T) watchtest.World {
	e := &watch.Endpoint{Server: serve.Server{Address: "127.0.0.1:0"}, Receiver: watch.Receiver{
		Secrets: secrets, Lost: func(types.NamespacedName) {}, Count: func(dialect.Name, watch.Verdict) {}, Now: time.Now,
	}}
	var mu sync.Mutex
	n := 0
	return watchtest.World{Source: e, Push: func(repo, tag, digest string) {
		mu.Lock()
		n++
		body := distribution(fmt.Sprintf("event-%d", n), repo, tag, digest, time.Now())
		mu.Unlock()
		for range 200 {
			if a := e.Addr(); a != nil {
				code, _, err := send("http://"+a.String()+watch.PathPrefix+"ns/main", body, "Authorization", "Bearer "+token)
				if err == nil && code < 300 {
					return
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%s:%s is not taken", repo, tag)
	}}
}

func distribution(id, repo, tag, digest string, at time.Time) string {
	return fmt.Sprintf(`{"events":[{"id":%q,"timestamp":%q,"action":"push","target":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"repository":%q,"tag":%q}}]}`,
		id, at.UTC().Format(time.RFC3339Nano), digest, repo, tag)
}

func send(url, body string, headers ...string) (code int, answer string, err error) {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), errors.Join(err, resp.Body.Close())
}

// desk is a receiver and what it counted.
type desk struct {
	*httptest.Server
	receiver *watch.Receiver
	record   *watchtest.Recorder
	mu       sync.Mutex
	counts   map[string]int
	lost     int
	now      time.Time
}

func newDesk(t *testing.T) *desk {
	d := &desk{record: &watchtest.Recorder{}, counts: map[string]int{}, now: time.Now()}
	d.receiver = &watch.Receiver{
		Secrets: secrets, Report: d.record.Report,
		Lost: func(types.NamespacedName) { d.lost++ },
		Now:  func() time.Time { return d.now },
		Count: func(n dialect.Name, v watch.Verdict) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.counts[string(n)+" "+string(v)]++
		},
	}
	d.Server = httptest.NewServer(d.receiver)
	t.Cleanup(d.Close)
	return d
}

// TestRefusals walks through everything that is not taken, and how it is counted.
func TestRefusals(t *testing.T) {
	d := newDesk(t)
	good := distribution("1", "team/app", "v1", watchtest.Digest(1), d.now)
	sign := func(key string) string {
		m := hmac.New(sha256.New, []byte(key))
		m.Write([]byte(good))
		return "sha256=" + hex.EncodeToString(m.Sum(nil))
	}
	bearer := []string{"Authorization", "Bearer " + token}
	for _, c := range []struct {
		what, path, body string
		headers          []string
		code             int
		count            string
	}{
		{"no token", "ns/main", good, nil, 401, " unauthenticated"},
		{"a wrong token", "ns/main", good, []string{"Authorization", "Bearer x"}, 401, " unauthenticated"},
		{"a wrong token in the address", "ns/main?token=x", good, nil, 401, " unauthenticated"},
		{"a wrong signature", "ns/main", good, []string{"X-Hub-Signature-256", sign("x")}, 401, " unauthenticated"},
		{"an unknown Registry", "ns/none", good, bearer, 401, " unauthenticated"},
		{"garbage", "ns/main", "garbage", bearer, 400, " unknown"},
		{"nothing", "ns/main", "", bearer, 400, " unknown"},
		{"no dialect", "ns/main", `{"hello":"world"}`, bearer, 400, " unknown"},
		{"a bad tag", "ns/main", distribution("2", "team/app", "a b", "", d.now), bearer, 422, "distribution malformed"},
		{"too much", "ns/main", good + strings.Repeat(" ", watch.MaxNotification), bearer, 413, " oversized"},
		{"a pull", "ns/main", strings.Replace(good, "push", "pull", 1), bearer, 202, "distribution ignored"},
		{"an old one", "ns/main", distribution("3", "team/app", "v1", "", d.now.Add(-48*time.Hour)), bearer, 208, "distribution stale"},
		{"one of tomorrow", "ns/main", distribution("4", "team/app", "v1", "", d.now.Add(time.Hour)), bearer, 208, "distribution stale"},
		{"a good one", "ns/main", good, bearer, 202, "distribution accepted"},
		{"the same again", "ns/main", good, bearer, 208, "distribution replayed"},
		{"a good one, the token in the address", "ns/main?token=" + token, distribution("5", "team/app", "v1", "", d.now), nil, 202, "distribution accepted"},
		{"a good one, signed", "ns/main", strings.Replace(good, `"1"`, `"6"`, 1), []string{"X-Hub-Signature-256", ""}, 401, " unauthenticated"},
	} {
		clear(d.counts)
		code, answer, err := send(d.URL+watch.PathPrefix+c.path, c.body, c.headers...)
		if err != nil || code != c.code || d.counts[c.count] != 1 || len(d.counts) != 1 {
			t.Errorf("%s: %d %s, %v, counted %v", c.what, code, answer, err, d.counts)
		}
		if strings.Contains(answer, token) {
			t.Errorf("%s: the answer has the token", c.what)
		}
		var out struct{ Verdict string }
		if err := json.Unmarshal([]byte(answer), &out); err != nil || out.Verdict == "" {
			t.Errorf("%s: %q, %v", c.what, answer, err)
		}
	}
	if n := len(d.record.Seen()); n != 2 {
		t.Errorf("%d were reported", n)
	}
	for path, want := range map[string]int{"/": 404, "/v1/notifications/ns": 404, "/v1/notifications/ns/main/x": 404} {
		if code, _, err := send(d.URL+path, good, bearer...); err != nil || code != want {
			t.Errorf("%s: %d, %v", path, code, err)
		}
	}
	if resp, err := http.Get(d.URL + watch.PathPrefix + "ns/main"); err != nil || resp.StatusCode != 405 {
		t.Errorf("GET: %v, %v", resp, err)
	} else if err := resp.Body.Close(); err != nil {
		t.Error(err)
	}
}

// TestNotTaken proves that a notification that could not be followed is not lost:
// the sender is told to try again, a scan is asked for, and the second try counts.
func TestNotTaken(t *testing.T) {
	d := newDesk(t)
	down := true
	d.record.Fails = func(watch.Push) error {
		if down {
			return errors.New("on purpose")
		}
		return nil
	}
	body := distribution("1", "team/app", "v1", watchtest.Digest(1), d.now)
	code, answer, err := send(d.URL+watch.PathPrefix+"ns/main", body, "Authorization", "Bearer "+token)
	if err != nil || code != http.StatusServiceUnavailable || d.lost != 1 || strings.Contains(answer, "on purpose") {
		t.Errorf("%d %s, %v; lost %d", code, answer, err, d.lost)
	}
	down = false
	if code, answer, err = send(d.URL+watch.PathPrefix+"ns/main", body, "Authorization", "Bearer "+token); err != nil || code != http.StatusAccepted || !strings.Contains(answer, `"conversion":"c"`) {
		t.Errorf("%d %s, %v", code, answer, err)
	}
}

// TestTwins proves that two pushes of a tag that look the same are two, where the
// sender puts neither an id nor a time into them, if they are some seconds apart.
func TestTwins(t *testing.T) {
	d := newDesk(t)
	body := `{"name":"app","repository":"team/app","namespace":"team","docker_url":"quay.io/team/app","updated_tags":["latest"]}`
	for i, c := range []struct {
		after time.Duration
		code  int
	}{{0, 202}, {0, 208}, {time.Minute, 202}} {
		d.now = d.now.Add(c.after)
		if code, answer, err := send(d.URL+watch.PathPrefix+"ns/main?token="+token, body); err != nil || code != c.code {
			t.Errorf("%d: %d %s, %v", i, code, answer, err)
		}
	}
}

// TestFlood proves that many at once are bounded, and none is lost silently.
func TestFlood(t *testing.T) {
	d := newDesk(t)
	hold := make(chan struct{})
	d.receiver.Report = func(ctx context.Context, _ watch.Push) (watch.Outcome, error) {
		select {
		case <-hold:
		case <-ctx.Done():
		}
		return watch.Outcome{}, nil
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range 200 {
		wg.Go(func() {
			code, _, err := send(d.URL+watch.PathPrefix+"ns/main", distribution(fmt.Sprint(i), "team/app", fmt.Sprintf("v%d", i), "", d.now), "Authorization", "Bearer "+token)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if codes[code]++; codes[http.StatusServiceUnavailable] == 100 {
				close(hold)
			}
		})
	}
	wg.Wait()
	if codes[202] < 64 || codes[202]+codes[503] != 200 {
		t.Errorf("%v", codes)
	}
}

func BenchmarkReceiver(b *testing.B) {
	r := &watch.Receiver{
		Secrets: secrets, Lost: func(types.NamespacedName) {}, Count: func(dialect.Name, watch.Verdict) {}, Now: time.Now,
		Report: func(context.Context, watch.Push) (watch.Outcome, error) { return watch.Outcome{}, nil },
	}
	for i := range b.N {
		req := httptest.NewRequest(http.MethodPost, watch.PathPrefix+"ns/main", bytes.NewReader([]byte(distribution(fmt.Sprint(i), "team/app", "v1", "", time.Now()))))
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		if r.ServeHTTP(w, req); w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
}
