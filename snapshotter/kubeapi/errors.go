package kubeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
)

// StatusError is the server's refusal.
type StatusError struct {
	// Code is that of HTTP.
	Code int
	// Reason is a word for programs, "NotFound", Message a sentence for people.
	Reason, Message string
}

// Error says what the server says.
func (e *StatusError) Error() string {
	if e.Message == "" {
		return strings.TrimSpace(fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code)))
	}
	return e.Message
}

// maxMessage bounds what is passed on of a server's words.
const maxMessage = 1024

// status is the Status of the API.
type status struct {
	Kind    string `json:"kind"`
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func (s status) error(code int) *StatusError {
	return &StatusError{Code: code, Reason: s.Reason, Message: line(s.Message, maxMessage)}
}

// statusError reads an answer that is no success, and closes it.
func statusError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	_ = resp.Body.Close() // what is there of it is used
	var s status
	if err == nil && json.Unmarshal(b, &s) == nil && s.Kind == "Status" {
		return s.error(resp.StatusCode)
	}
	s = status{Message: fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))}
	if kind, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil && kind == "text/plain" && len(b) > 0 {
		s.Message += ": " + line(string(b), 200)
	}
	return s.error(resp.StatusCode)
}

// line makes one line of text, of n bytes at most.
func line(text string, n int) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > n {
		text = strings.ToValidUTF8(text[:n], "") + "…"
	}
	return text
}

// IsNotFound says whether err means that there is no such object, or no such kind.
func IsNotFound(err error) bool { return is(err, http.StatusNotFound) }

// IsForbidden says whether err means that we are not who we say, or may not do it.
func IsForbidden(err error) bool {
	return is(err, http.StatusForbidden) || is(err, http.StatusUnauthorized)
}

// IsConflict says whether err means that the object is there already, or was changed
// by another.
func IsConflict(err error) bool { return is(err, http.StatusConflict) }

// IsGone says whether err means that the server no longer knows the resource version
// of a Watch, or the page of a List: begin again with a List.
func IsGone(err error) bool { return is(err, http.StatusGone) }

func is(err error, code int) bool {
	var s *StatusError
	return errors.As(err, &s) && s.Code == code
}
