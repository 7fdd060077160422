package agent

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// office is a courier, the daemon that it reads from, and an operator that answers as
// the test wants.
type office struct {
	*courier
	clock   time.Time
	samples []string
	broken  error // of the daemon
	codes   []int // answers of the operator; the last one stays
	got     []string
	asked   int // for the address
	since   time.Time
}

func newOffice(t *testing.T, codes ...int) *office {
	t.Helper()
	o := &office{clock: time.Now(), codes: codes}
	operator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		text, err := io.ReadAll(z)
		if err != nil || r.URL.Path != profile.SamplesPath || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("%s, %v, %v", r.URL.Path, r.Header, err)
		}
		o.got = append(o.got, string(text))
		code := o.codes[0]
		if len(o.codes) > 1 {
			o.codes = o.codes[1:]
		}
		w.WriteHeader(code)
		_, _ = w.Write([]byte("as told")) // the client is in this process
	}))
	t.Cleanup(operator.Close)
	host, port, err := net.SplitHostPort(operator.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.asked++
		if r.URL.Path != "/api/v1/namespaces/system/services/samples" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		_, _ = fmt.Fprintf(w, `{"spec":{"clusterIP":%q,"ports":[{"name":"other","port":1},{"name":"samples","port":%s}]}}`, host, port)
	}))
	t.Cleanup(server.Close)
	api, err := kubeapi.New(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.courier = &courier{
		SampleOptions: SampleOptions{Service: "system/samples", Token: token}, api: api, log: slog.New(slog.DiscardHandler),
		now: func() time.Time { return o.clock },
		read: func(_ context.Context, since time.Time, each func(json.RawMessage) error) error {
			o.since = since
			for _, s := range o.samples {
				if err := each(json.RawMessage(s)); err != nil {
					return err
				}
			}
			return o.broken
		},
	}
	return o
}

// start adds a sample to what the daemon has.
func (o *office) start(image string) {
	o.samples = append(o.samples, fmt.Sprintf(`{"Image":%q,"Manifest":"sha256:1","Started":%q}`, image, o.clock.Format(time.RFC3339Nano)))
}

// TestCourier: every sample arrives once, whatever replica is asked first, and after
// troubles; those that nobody wants do not keep the others waiting.
func TestCourier(t *testing.T) {
	o := newOffice(t, http.StatusMisdirectedRequest, http.StatusMisdirectedRequest, http.StatusAccepted)
	o.start("a")
	o.turn(t.Context())
	o.turn(t.Context())
	if len(o.got) != 3 || o.got[2] != o.samples[0] || len(o.waiting) != 0 || o.asked != 1 || o.bytes != 0 {
		t.Fatalf("the operator got %q, %d wait, the address was asked for %d times", o.got, len(o.waiting), o.asked)
	}
	if d := o.clock.Sub(o.since); d > 2*sampleOverlap {
		t.Errorf("samples are asked for of %v", d)
	}
	// Refused for good, and taken.
	o.got, o.codes = nil, []int{http.StatusUnprocessableEntity, http.StatusOK}
	o.start("b")
	o.start("c")
	o.turn(t.Context())
	if len(o.got) != 2 || len(o.waiting) != 0 {
		t.Fatalf("the operator got %q, %d wait", o.got, len(o.waiting))
	}
	// The operator is away: tried again later, and where it is then.
	o.got, o.codes = nil, []int{http.StatusServiceUnavailable, http.StatusAccepted}
	o.start("d")
	o.turn(t.Context())
	o.turn(t.Context())
	if len(o.got) != 1 || len(o.waiting) != 1 || o.problem == "" {
		t.Fatalf("the operator got %q, %d wait: %s", o.got, len(o.waiting), o.problem)
	}
	o.clock = o.clock.Add(2 * firstBackoff)
	o.turn(t.Context())
	if len(o.got) != 2 || len(o.waiting) != 0 || o.asked != 2 || o.problem != "" {
		t.Fatalf("the operator got %q, %d wait: %s", o.got, len(o.waiting), o.problem)
	}
	// No replica leads: an end is found.
	o.got, o.codes = nil, []int{http.StatusMisdirectedRequest}
	o.start("e")
	o.turn(t.Context())
	if len(o.got) != replicaTries || len(o.waiting) != 1 {
		t.Fatalf("the operator got %d, %d wait", len(o.got), len(o.waiting))
	}
	// For an hour.
	o.clock = o.clock.Add(sampleAge + time.Minute)
	o.turn(t.Context())
	if len(o.got) != replicaTries || len(o.waiting) != 0 || o.bytes != 0 {
		t.Fatalf("the operator got %d, %d wait", len(o.got), len(o.waiting))
	}
}

// TestCourierBounds: a daemon that breaks off, talks nonsense or does not end is not
// asked for the same again and again, nor does it fill the memory.
func TestCourierBounds(t *testing.T) {
	o := newOffice(t, http.StatusAccepted)
	o.start("a")
	o.broken = errors.New("broke off")
	o.turn(t.Context())
	o.turn(t.Context())
	if len(o.got) != 1 || o.problem != "broke off" {
		t.Fatalf("the operator got %q: %s", o.got, o.problem)
	}
	o.broken = os.ErrNotExist // no daemon yet
	o.turn(t.Context())
	if o.problem != "" {
		t.Error(o.problem)
	}
	o.samples, o.broken = []string{`{"Image": 1}`}, nil
	o.turn(t.Context())
	if o.problem == "" {
		t.Error("nonsense is taken for a sample")
	}
	o.samples, o.codes = nil, []int{http.StatusServiceUnavailable}
	for range 2 * maxWaiting {
		o.start("again")
		o.clock = o.clock.Add(time.Second)
	}
	o.turn(t.Context())
	if len(o.waiting) != maxWaiting {
		t.Errorf("%d wait", len(o.waiting))
	}
	sum := 0
	for _, p := range o.waiting {
		sum += len(p.body)
	}
	if sum != o.bytes {
		t.Errorf("%d bytes wait, counted are %d", sum, o.bytes)
	}
	// From before the agent, the operator and everything.
	o.samples, o.waiting, o.got = nil, nil, nil
	o.start("old")
	o.clock = o.clock.Add(2 * sampleAge)
	o.turn(t.Context())
	if len(o.waiting) != 0 {
		t.Error("an old sample is sent")
	}
}

func TestSampleOptions(t *testing.T) {
	for _, o := range []SampleOptions{{Service: "name", Token: "t"}, {Service: "a/", Token: "t"}, {Service: "a/b"}, {Service: "a/b/c", Token: "t"}} {
		if err := o.check(); err == nil || !strings.Contains(err.Error(), "--samples-") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if err := (SampleOptions{}).check(); err != nil {
		t.Error(err)
	}
}
