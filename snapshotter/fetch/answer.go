package fetch

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	// maxErrorBody is how much of an error's body is read: enough for a message,
	// and for the connection to be used again.
	maxErrorBody = 4 << 10
	// maxMessage is how much of a registry's message is quoted, in bytes.
	maxMessage = 200
)

// accept returns the body of resp if it is exactly the range asked for.
func (r *request) accept(at *hop, resp *http.Response) (io.ReadCloser, error) {
	err := r.check(resp)
	if err != nil {
		return nil, r.refuse(at, resp, err)
	}
	if at.url != r.web.origin {
		r.web.remember(at)
	}
	return &body{req: r, at: at, resp: resp, left: r.n}, nil
}

// protocolError is an answer that breaks HTTP's rules for ranges. It is tried
// again: one bad machine behind a load balancer must not fail a program.
type protocolError struct{ error }

// check compares the answer with the question. Nothing but its own words ties a
// body to a range, so every word must be right.
func (r *request) check(resp *http.Response) error {
	size := r.web.cfg.Size
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fmt.Errorf("answer is encoded as %q", short(enc))
	}
	switch resp.StatusCode {
	case http.StatusPartialContent:
	case http.StatusOK:
		if resp.ContentLength == 0 {
			r.learn(0) // an empty blob has no ranges
		}
		if r.off != 0 || r.n != size {
			return ErrNoRanges
		}
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return fmt.Errorf("blob has %d bytes there, not %d", resp.ContentLength, size)
		}
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		if _, _, total, ok := parseContentRange(resp.Header.Get("Content-Range")); ok && total >= 0 {
			r.learn(total)
			return fmt.Errorf("blob has only %d bytes there", total)
		}
		return errors.New("registry does not have this range of the blob")
	default:
		return errors.New(http.StatusText(resp.StatusCode))
	}
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && strings.HasPrefix(t, "multipart/") {
		return protocolError{errors.New("answer has several parts where one range was asked for")}
	}
	return r.checkRange(resp)
}

// checkRange compares what a 206 says of itself with the question.
func (r *request) checkRange(resp *http.Response) error {
	said := resp.Header.Get("Content-Range")
	start, end, total, ok := parseContentRange(said)
	if ok && r.web.cfg.learn != nil {
		if total < 0 {
			return errors.New("registry does not say how long the blob is")
		}
		r.learn(total)
	} else if ok && total != r.web.cfg.Size {
		return fmt.Errorf("blob has another length there: Content-Range %q, wanted %d bytes", short(said), r.web.cfg.Size)
	}
	if !ok || start != r.off || end != r.off+r.n-1 {
		return protocolError{fmt.Errorf("answer is for another range: Content-Range %q", short(said))}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != r.n {
		return protocolError{fmt.Errorf("answer has %d bytes where %d were asked for", resp.ContentLength, r.n)}
	}
	return nil
}

func (r *request) learn(total int64) {
	if f := r.web.cfg.learn; f != nil {
		f(total)
	}
}

// parseContentRange reads "bytes 0-99/100" and "bytes */100" (RFC 9110, 14.4).
// start and end are -1 for the second form, total is -1 for "*".
func parseContentRange(s string) (start, end, total int64, ok bool) {
	unit, rest, found := strings.Cut(s, " ")
	if !found || !strings.EqualFold(unit, "bytes") {
		return 0, 0, 0, false
	}
	span, length, found := strings.Cut(rest, "/")
	if !found {
		return 0, 0, 0, false
	}
	start, end, total = -1, -1, -1
	if length != "*" {
		if total, ok = decimal(length); !ok {
			return 0, 0, 0, false
		}
	}
	if span == "*" {
		return start, end, total, total >= 0
	}
	a, b, found := strings.Cut(span, "-")
	if !found {
		return 0, 0, 0, false
	}
	var okA, okB bool
	start, okA = decimal(a)
	end, okB = decimal(b)
	if !okA || !okB || end < start || (total >= 0 && end >= total) || end == math.MaxInt64 {
		return 0, 0, 0, false
	}
	return start, end, total, true
}

// decimal reads digits only: no sign, no space, no overflow.
func decimal(s string) (int64, bool) {
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil
}

// refuse closes the answer and turns it into an *Error with cause err.
func (r *request) refuse(at *hop, resp *http.Response, err error) *Error {
	e := r.fail(at, fmt.Errorf("%w%s", err, r.message(resp)))
	e.Status = resp.StatusCode
	home := r.home(at)
	switch c := resp.StatusCode; {
	case c == http.StatusRequestTimeout, c == http.StatusTooManyRequests:
		e.Temporary = true
	case c >= 500 && c != http.StatusNotImplemented && c != http.StatusHTTPVersionNotSupported:
		e.Temporary = true
	case !home && expired(e):
		// The storage service does not take a URL that the registry has just
		// signed. The next one may be good; a blob that is gone stays gone.
		e.Temporary = c != http.StatusNotFound
	case c == http.StatusUnauthorized, c == http.StatusForbidden:
		e.Err = refusal{e.Err}
	default:
		_, e.Temporary = errors.AsType[protocolError](err)
	}
	e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	return e
}

// refusal marks an error that new credentials or certificates could cure.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// fail returns an *Error about a request to at.
func (r *request) fail(at *hop, err error) *Error {
	return &Error{Host: at.url.Host, Range: rangeOf(r.off, r.n), Err: err}
}

// broken returns the *Error for a request that got no answer, or not all of it.
func (r *request) broken(at *hop, err error) *Error {
	if r.ctx.Err() != nil {
		// What the transport reports is only that somebody cancelled.
		err = context.Cause(r.ctx)
	}
	e := r.fail(at, Redact(err))
	e.Temporary = true
	if isTLS(err) {
		e.Temporary = false
		e.Err = refusal{e.Err}
	}
	return e
}

// isTLS says whether the two sides do not agree on certificates or on TLS itself.
func isTLS(err error) bool {
	if errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return true
	}
	// crypto/tls reports alerts, such as "bad certificate", as a net.OpError
	// with these operations and a type that it does not export.
	op, ok := errors.AsType[*net.OpError](err)
	return ok && (op.Op == "remote error" || op.Op == "local error")
}

// retryAfter reads the header in both its forms (RFC 9110, 10.2.3).
func retryAfter(s string, now time.Time) time.Duration {
	if secs, ok := decimal(s); ok {
		return time.Duration(min(secs, int64(24*time.Hour/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// discard reads a small rest of the body, so that the connection can be used
// again, and closes it.
func (r *request) discard(resp *http.Response) []byte {
	stop := r.wait(r.web.cfg.StallTimeout, "no byte")
	defer stop()
	// An error here has nothing to add to the answer that is being discarded.
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	_ = resp.Body.Close()
	return b
}

// message closes the answer and returns what the registry says in it, as " (...)",
// or "" if it says nothing in a form we know: the OCI error document (distribution
// spec 1.1, "Error Codes"), the XML of storage services, or plain text.
func (r *request) message(resp *http.Response) string {
	b := r.discard(resp)
	if resp.StatusCode < 300 {
		return ""
	}
	var text string
	var oci struct {
		Errors []struct{ Code, Message string }
	}
	var store struct{ Code, Message string }
	switch {
	case json.Unmarshal(b, &oci) == nil && len(oci.Errors) > 0:
		text = oci.Errors[0].Code + ": " + oci.Errors[0].Message
	case xml.Unmarshal(b, &store) == nil && store.Code != "":
		text = store.Code + ": " + store.Message
	case strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain"):
		text = string(b)
	}
	if text = short(strings.Trim(text, ": \n")); text == "" {
		return ""
	}
	return " (" + text + ")"
}

var (
	urlQuery = regexp.MustCompile(`(https?://[^\s"'?]*)\?[^\s"']*`)
	urlUser  = regexp.MustCompile(`(https?://)[^\s"'/@]*@`)
	bearer   = regexp.MustCompile(`(?i)\b(basic|bearer) +[A-Za-z0-9+/=._~-]{8,}`)
	// secret has the forms key=value and "key": "value".
	secret = regexp.MustCompile(`(?i)((?:password|passwd|secret|token|signature|credential)(?:\s*=\s*"?|"\s*:\s*"))[^\s"',;&]+`)
	// longWord is longer than a digest: a token, most likely.
	longWord = regexp.MustCompile(`[A-Za-z0-9+_.=~-]{72,}`)
)

// redact removes from s what may be a credential or the query of a signed URL.
func redact(s string) string {
	s = urlQuery.ReplaceAllString(s, "$1")
	s = urlUser.ReplaceAllString(s, "$1")
	s = bearer.ReplaceAllString(s, "$1 ***")
	s = secret.ReplaceAllString(s, "$1***")
	return longWord.ReplaceAllString(s, "***")
}

// short returns one printable, harmless line of text from outside.
func short(s string) string {
	s = strings.Map(func(c rune) rune {
		switch {
		case unicode.IsSpace(c):
			return ' '
		case !unicode.IsPrint(c):
			return -1
		}
		return c
	}, s)
	s = strings.Join(strings.Fields(redact(s)), " ")
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}

// cleaned is an error whose text was redacted; errors.Is still finds the cause.
type cleaned struct {
	text string
	err  error
}

func (c cleaned) Error() string { return c.text }
func (c cleaned) Unwrap() error { return c.err }

// Redact returns err with a text that has no credentials and no queries of URLs,
// which may be signatures; errors.Is and errors.As still find what it wraps.
func Redact(err error) error {
	if err == nil {
		return nil
	}
	if text := redact(err.Error()); text != err.Error() {
		return cleaned{text, err}
	}
	return err
}
