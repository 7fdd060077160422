package registry

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/apparate/apparate/converter/fault"
)

// direction is what was asked of the registry: whose right is missing depends
// on it.
type direction int

const (
	pull direction = iota
	push
)

// classify turns an error of go-containerregistry into a fault. what is the
// image or repository that was asked for.
func classify(ctx context.Context, d direction, what string, err error) error {
	var known *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	host, _, _ := strings.Cut(what, "/")
	var te *transport.Error
	if errors.As(err, &te) {
		return status(d, host, what, te)
	}
	var dns *net.DNSError
	var op *net.OpError
	var u *url.Error
	var silent *silentError
	cause := withoutURL(err)
	switch {
	case errors.As(err, &silent):
		return fault.NewTemporary(fault.Unreachable, silent, "registry %s does not answer: try again later", host)
	case errors.As(err, &dns), errors.As(err, &op):
		return fault.NewTemporary(fault.Unreachable, cause, "registry %s cannot be reached: check the name, the network and proxies", host)
	case errors.As(err, &u):
		// TLS trouble, mostly; the cause tells.
		return fault.NewTemporary(fault.Unreachable, cause, "registry %s cannot be spoken to (--plain-http for one without TLS, --insecure to accept any certificate)", host)
	}
	return fault.NewTemporary(fault.RegistryError, cause, "registry %s gave an answer for %s that makes no sense", host, what)
}

// status judges an HTTP status.
func status(d direction, host, what string, te *transport.Error) error {
	ping := te.Request != nil && strings.TrimSuffix(te.Request.URL.Path, "/") == "/v2"
	switch code := te.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		if d == push {
			return fault.New(fault.PushDenied, detail(te), "no right to push to %s: log in with docker login %s, using an account that may push", what, host)
		}
		return fault.New(fault.PullDenied, detail(te), "no right to pull %s: log in with docker login %s, or check that the image exists", what, host)
	case ping && code < 500 && code != http.StatusTooManyRequests:
		return fault.New(fault.NotRegistry, detail(te), "%s is no OCI registry: check the host and port", host)
	case code == http.StatusNotFound && d == pull:
		return fault.New(fault.NotFound, detail(te), "%s does not exist: check the repository and the tag", what)
	case code == http.StatusMethodNotAllowed:
		return fault.New(fault.PushDenied, detail(te), "registry %s takes no pushes to %s: it may be a read-only mirror", host, what)
	case code == http.StatusTooManyRequests:
		return fault.NewTemporary(fault.RegistryError, detail(te), "registry %s asks for fewer requests: try again later", host)
	}
	e := fault.New(fault.RegistryError, detail(te), "registry %s failed on %s", host, what)
	e.Retry = te.StatusCode >= 500 || te.Temporary()
	return e
}

// detail is what the registry said, on one line and bounded.
func detail(te *transport.Error) error {
	var parts []string
	for _, d := range te.Errors {
		parts = append(parts, strings.Join(strings.Fields(string(d.Code)+" "+d.Message), " "))
	}
	text := http.StatusText(te.StatusCode)
	if len(parts) > 0 {
		text += ", " + strings.Join(parts, "; ")
	}
	return &answer{status: te.StatusCode, text: bounded(text), err: te}
}

// bounded cuts off what is too long for a message.
func bounded(text string) string {
	const most = 200
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// line prints an error on one line and bounded: some have the whole answer of a
// token service in them.
type line struct{ err error }

func (l *line) Error() string { return bounded(strings.Join(strings.Fields(l.err.Error()), " ")) }
func (l *line) Unwrap() error { return l.err }

// answer prints as what the registry said and unwraps to the whole error. Its
// URL stays out of the line: redirected ones carry signatures.
type answer struct {
	status int
	text   string
	err    error
}

func (a *answer) Error() string { return "it answered " + http.StatusText(a.status) + rest(a) }
func (a *answer) Unwrap() error { return a.err }

func rest(a *answer) string { return strings.TrimPrefix(a.text, http.StatusText(a.status)) }

// withoutURL drops the URL from a client's error, for the same reason.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// hasStatus says whether a registry's answer with this status led to a fault.
func hasStatus(e *fault.Error, code int) bool {
	var te *transport.Error
	return errors.As(e, &te) && te.StatusCode == code
}
