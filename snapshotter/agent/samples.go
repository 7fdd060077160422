package agent

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/kubeapi"
)

// Bounds of what waits for an operator.
const (
	samplePoll = 5 * time.Second
	sampleAge  = time.Hour // older samples are of no use to nodes that start now
	// sampleOverlap is for how long a sample is looked at again: clocks are set, and
	// files are written for a while.
	sampleOverlap = time.Minute
	maxWaiting    = 64
	maxWaitBytes  = 32 << 20 // compressed, together
	firstBackoff  = 5 * time.Second
	maxBackoff    = 5 * time.Minute
	sendLimit     = 20 * time.Second
	// replicaTries is how often another replica is asked for: the service chooses one
	// by chance, and one alone leads.
	replicaTries = 12
)

// SampleOptions say where the samples of starts go.
type SampleOptions struct {
	// Service is namespace/name of the operator's service; "" means that samples stay
	// on the node, for `apparate profile record`.
	Service string
	// Token is a file with a token for api/profile's SamplesAudience, renewed by kubelet.
	Token string
	// CA is a file with the certificates that the operator's is from; "" means plain
	// HTTP, as the token is good for nothing else.
	CA string
}

// check returns what is wrong with the options.
func (o SampleOptions) check() error {
	if o.Service == "" {
		return nil
	}
	if ns, name, ok := strings.Cut(o.Service, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("--samples-service %q: write namespace/name", o.Service)
	}
	if o.Token == "" {
		return errors.New("--samples-token is missing: name the file of a token with the audience " + profile.SamplesAudience)
	}
	return nil
}

// courier takes samples from the daemon to the operator. Nothing waits for it.
type courier struct {
	SampleOptions
	api  *kubeapi.Client
	read func(ctx context.Context, since time.Time, each func(json.RawMessage) error) error
	log  *slog.Logger
	now  func() time.Time

	since   time.Time         // what was recorded before it is known
	seen    map[[32]byte]bool // of the daemon's last answer
	waiting []parcel
	bytes   int
	target  string // URL, "" when it has to be looked up
	backoff time.Duration
	next    time.Time // of the next try to send
	trouble error     // of the last one
	problem string    // was logged
}

// parcel is a sample that waits to be sent.
type parcel struct {
	body  []byte // gzip
	since time.Time
}

// carry runs until ctx ends.
func (a *Agent) carry(ctx context.Context) error {
	c := &courier{SampleOptions: a.Samples, api: a.API, read: a.machine.Samples, log: a.Logger, now: time.Now}
	for {
		c.turn(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(samplePoll):
		}
	}
}

// turn looks for new samples, and sends what waits.
func (c *courier) turn(ctx context.Context) {
	c.say(ctx, errors.Join(c.collect(ctx), c.deliver(ctx)))
}

// say logs an error once.
func (c *courier) say(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != c.problem && ctx.Err() == nil {
		c.log.Warn("samples of starts wait on this node", "waiting", len(c.waiting), "error", err)
	}
	c.problem = text
}

// collect takes over the daemon's samples that are new and fresh.
func (c *courier) collect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	seen := map[[32]byte]bool{}
	now := c.now()
	if c.since.IsZero() {
		c.since = now.Add(-sampleAge)
	}
	err := c.read(ctx, c.since, func(raw json.RawMessage) error {
		var head struct {
			Image, Manifest string
			Started         time.Time
		}
		if err := json.Unmarshal(raw, &head); err != nil {
			return fmt.Errorf("a sample of the snapshotter: %w", err)
		}
		id := sha256.Sum256([]byte(head.Image + "\n" + head.Manifest + "\n" + head.Started.UTC().Format(time.RFC3339Nano)))
		known := c.seen[id] || seen[id]
		seen[id] = true
		if known || c.now().Sub(head.Started) > sampleAge {
			return nil
		}
		return c.pack(raw)
	})
	if err == nil {
		c.seen, c.since = seen, now.Add(-sampleOverlap)
		return nil
	}
	// What was taken over must not be again.
	for id := range c.seen {
		seen[id] = true
	}
	if len(seen) < 100*maxWaiting {
		c.seen = seen
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil // no daemon yet: the node's status tells
	}
	return err
}

// pack compresses a sample, and lets it wait; the oldest go where there is no room.
func (c *courier) pack(raw json.RawMessage) error {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if b.Len() > profile.MaxSampleBody {
		c.log.Warn("a sample is too large for the operator", "bytes", b.Len(), "limit", profile.MaxSampleBody)
		return nil
	}
	c.waiting = append(c.waiting, parcel{b.Bytes(), c.now()})
	c.bytes += b.Len()
	for len(c.waiting) > maxWaiting || c.bytes > maxWaitBytes {
		c.drop()
	}
	return nil
}

// drop forgets the first that waits.
func (c *courier) drop() {
	c.bytes -= len(c.waiting[0].body)
	c.waiting = c.waiting[1:]
}

// deliver sends what waits, the oldest first, until there is trouble.
func (c *courier) deliver(ctx context.Context) error {
	for len(c.waiting) > 0 && c.now().Sub(c.waiting[0].since) > sampleAge {
		c.drop()
	}
	if len(c.waiting) > 0 && c.now().Before(c.next) {
		return c.trouble
	}
	for len(c.waiting) > 0 && ctx.Err() == nil {
		refused, err := c.post(ctx, c.waiting[0].body)
		if c.trouble = err; err != nil {
			c.target = ""
			c.backoff = min(max(2*c.backoff, firstBackoff), maxBackoff)
			c.next = c.now().Add(c.backoff + rand.N(c.backoff/2))
			return err
		}
		if refused != "" {
			c.log.Warn("the operator does not take a sample", "because", refused)
		}
		c.backoff, c.next = 0, time.Time{}
		c.drop()
	}
	return nil
}

// post sends one sample. refused says why it will never be taken; an error may pass.
func (c *courier) post(ctx context.Context, body []byte) (refused string, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	if c.target == "" {
		if c.target, err = c.lookUp(ctx); err != nil {
			return "", err
		}
	}
	client, err := c.client()
	if err != nil {
		return "", err
	}
	for range replicaTries {
		var code int
		var text string
		if code, text, err = c.once(ctx, client, body); err != nil {
			return "", err
		}
		switch code {
		case http.StatusOK, http.StatusAccepted:
			return "", nil
		case http.StatusMisdirectedRequest:
			err = errors.New("no replica of the operator leads")
			continue
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
			return text, nil
		}
		return "", fmt.Errorf("the operator answers %d: %s", code, text)
	}
	return "", err
}

// once sends a request, and returns the beginning of the answer.
func (c *courier) once(ctx context.Context, client *http.Client, body []byte) (code int, text string, err error) {
	token, err := os.ReadFile(c.Token)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Content-Encoding", "gzip")
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	const most = 500
	b, err := io.ReadAll(io.LimitReader(resp.Body, most))
	return resp.StatusCode, strings.Join(strings.Fields(string(b)), " "), errors.Join(err, resp.Body.Close())
}

// lookUp asks the API server where the service is: the host, whose files this process
// sees, does not know the cluster's names.
func (c *courier) lookUp(ctx context.Context) (string, error) {
	ns, name, _ := strings.Cut(c.Service, "/")
	var s struct {
		Spec struct {
			ClusterIP string `json:"clusterIP"`
			Ports     []struct {
				Name string `json:"name"`
				Port int    `json:"port"`
			} `json:"ports"`
		} `json:"spec"`
	}
	if err := c.api.Get(ctx, "/api/v1/namespaces/"+ns+"/services/"+name, &s); err != nil {
		return "", err
	}
	scheme := "http"
	if c.CA != "" {
		scheme = "https"
	}
	for _, p := range s.Spec.Ports {
		if p.Name == profile.SamplesPort && net.ParseIP(s.Spec.ClusterIP) != nil {
			return scheme + "://" + net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(p.Port)) + profile.SamplesPath, nil
		}
	}
	return "", fmt.Errorf("service %s has no address, or no port %q", c.Service, profile.SamplesPort)
}

// client is one for a delivery: each request has a connection of its own, so that the
// service chooses a replica anew.
func (c *courier) client() (*http.Client, error) {
	t := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, err
		}
		ns, name, _ := strings.Cut(c.Service, "/")
		t.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: name + "." + ns + ".svc", MinVersion: tls.VersionTLS12}
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", c.CA)
		}
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}
