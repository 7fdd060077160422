// Package kubeapi speaks to a Kubernetes API server with plain requests, for
// processes that run on every node: without the typed clients a program is half
// as large, and takes less memory.
package kubeapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"
)

// Content types of Patch.
const (
	MergePatch          = "application/merge-patch+json"
	StrategicMergePatch = "application/strategic-merge-patch+json"
	JSONPatch           = "application/json-patch+json"
)

const (
	// timeout is how long a request may take, tries and all, but for Watch.
	timeout = 30 * time.Second
	// maxBody is how much of an answer is read, in bytes. A page of a list is the
	// largest: pageSize objects, of which one has 1.5 MiB at most.
	maxBody = 64 << 20
	// maxErrorBody is how much of an error's body is read.
	maxErrorBody = 64 << 10
	// serviceAccount is where kubelet puts a pod's credentials.
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// Client speaks to an API server. Paths are those of the API, "/api/v1/nodes/n1",
// and may have a query. It may be used in parallel.
type Client struct {
	http  *http.Client
	base  url.URL
	token *tokenFile
}

// InCluster returns a client with the rights of the pod whose root directory is
// podRoot, "" for our own. The address of the server is that of our environment.
func InCluster(podRoot string) (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this is no pod")
	}
	dir := filepath.Join(podRoot, serviceAccount)
	for _, f := range []string{"token", "ca.crt"} {
		if _, err := os.Stat(filepath.Join(dir, f)); err != nil {
			return nil, fmt.Errorf("the pod has no token of a service account (automountServiceAccountToken): %w", err)
		}
	}
	return New(&rest.Config{
		Host:            "https://" + net.JoinHostPort(host, port),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "ca.crt")},
		BearerTokenFile: filepath.Join(dir, "token"),
	})
}

// New returns a client for what cfg describes. Its Timeout and limits are ignored.
func New(cfg *rest.Config) (*Client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.Timeout = 0
	if cfg.UserAgent == "" {
		cfg.UserAgent = "apparate"
	}
	token := tokenFile{path: cfg.BearerTokenFile}
	if token.path != "" {
		cfg.BearerToken, cfg.BearerTokenFile = "", "" // we send it ourselves
		if _, err := token.read(); err != nil {
			return nil, err
		}
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("the address of the API server: %w", err)
	}
	transport, err := rest.TransportFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("speaking to the API server: %w", err)
	}
	return &Client{
		base: *base, token: &token,
		http: &http.Client{
			Transport: transport,
			// The transport would send the token along, wherever it leads.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// Get reads an object.
func (c *Client) Get(ctx context.Context, path string, into any) error {
	return c.do(ctx, request{method: http.MethodGet, path: path}, into)
}

// Create posts obj to a collection. into may be nil.
func (c *Client) Create(ctx context.Context, path string, obj, into any) error {
	return c.send(ctx, http.MethodPost, path, "application/json", obj, into)
}

// Patch changes an object by a patch of a type such as MergePatch. into may be nil.
func (c *Client) Patch(ctx context.Context, path, contentType string, patch, into any) error {
	return c.send(ctx, http.MethodPatch, path, contentType, patch, into)
}

// Delete removes an object. options, DeleteOptions of the API, and into may be nil.
func (c *Client) Delete(ctx context.Context, path string, options, into any) error {
	if options == nil {
		return c.do(ctx, request{method: http.MethodDelete, path: path}, into)
	}
	return c.send(ctx, http.MethodDelete, path, "application/json", options, into)
}

// send sends a body. Bytes and json.RawMessage are sent as they are.
func (c *Client) send(ctx context.Context, method, path, contentType string, body, into any) error {
	r := request{method: method, path: path, contentType: contentType}
	switch b := body.(type) {
	case []byte:
		r.body = b
	default:
		var err error
		if r.body, err = json.Marshal(b); err != nil {
			return r.failed(err)
		}
	}
	return c.do(ctx, r, into)
}

// request is what is asked. It is sent again where the server asks for that.
type request struct {
	method, path string
	query        url.Values // added to that of the path
	contentType  string
	body         []byte
}

// failed names the request in an error.
func (r request) failed(err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // it names the request once more
	}
	path, _, _ := strings.Cut(r.path, "?")
	return fmt.Errorf("%s %s: %w", r.method, path, err)
}

// do sends a request and reads its answer.
func (c *Client) do(ctx context.Context, r request, into any) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return r.failed(fmt.Errorf("reading the answer: %w", err))
	}
	if len(b) > maxBody {
		return r.failed(fmt.Errorf("the answer has more than %d bytes", maxBody))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return r.failed(fmt.Errorf("the answer is not what was asked for: %w", err))
	}
	return nil
}

// open sends a request until it is answered, and returns an answer of success.
func (c *Client) open(ctx context.Context, r request) (*http.Response, error) {
	u, query, err := c.url(r)
	if err != nil {
		return nil, r.failed(err)
	}
	u.RawQuery = query
	for try := 0; ; try++ {
		resp, err := c.once(ctx, r, u)
		if err != nil {
			return nil, r.failed(err)
		}
		if resp.StatusCode >= 200 && resp.StatusCode < 300 {
			return resp, nil
		}
		wait, again := retryAfter(resp)
		if err = r.failed(statusError(resp)); !again || try >= 10 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func (c *Client) once(ctx context.Context, r request, u url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), bytes.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if token, err := c.token.read(); err != nil {
		return nil, err
	} else if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	return c.http.Do(req)
}

// url returns where a request goes, and its query.
func (c *Client) url(r request) (u url.URL, query string, err error) {
	path, text, _ := strings.Cut(r.path, "?")
	values, err := url.ParseQuery(text)
	if err != nil {
		return url.URL{}, "", fmt.Errorf("the query %q: %w", text, err)
	}
	for k, v := range r.query {
		values[k] = v
	}
	return *c.base.JoinPath(path), values.Encode(), nil
}

// retryAfter says whether the server wants the request later: it did nothing of
// it then, whatever the method. The wait is spread, as all nodes hear the same.
func retryAfter(resp *http.Response) (time.Duration, bool) {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500 {
		return 0, false
	}
	s, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || s < 0 || s > int(timeout/time.Second) {
		return 0, false
	}
	wait := time.Duration(max(s, 1)) * time.Second
	return wait + rand.N(wait/2), true
}
