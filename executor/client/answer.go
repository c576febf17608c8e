package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/opensandbox/operator/executor/api"
)

// Error is an answer that refuses.
type Error struct {
	Status  int
	Problem api.Problem
}

func (e *Error) Error() string {
	text := fmt.Sprintf("status %d", e.Status)
	for _, part := range []string{e.Problem.Reason, e.Problem.Field, e.Problem.Detail} {
		if part != "" {
			text += ": " + part
		}
	}
	return text
}

// IsUnauthorized tells whether the executor refused the token.
func IsUnauthorized(err error) bool {
	var refused *Error
	return errors.As(err, &refused) && refused.Status == http.StatusUnauthorized
}

// Reason returns the problem's reason, one of the api.Problem constants, or "".
func Reason(err error) string {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Problem.Reason
	}
	return ""
}

func interpret(status int, data []byte, out any) error {
	if status < 200 || status > 299 {
		refused := &Error{Status: status}
		if json.Unmarshal(data, &refused.Problem) == nil {
			refused.Problem = sanitizeProblem(refused.Problem)
		}
		return refused
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the answer is not as expected: %w", err)
	}
	return nil
}

// Bounds of what is kept of an answer.
const (
	maxText = 1024
	maxList = 256
	// maxCapabilities are more than Linux has.
	maxCapabilities = 64
)

var capability = regexp.MustCompile(`^[A-Z_]{1,32}$`)

// sanitize returns a copy: a string that shares the answer's memory would keep all of it.
func sanitize(s string) string {
	return strings.Clone(strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD"))
}

// cut returns a copy of at most so many elements, for the same reason.
func cut[T any](list []T, most int) []T {
	if list == nil {
		return nil
	}
	return append([]T{}, list[:min(len(list), most)]...)
}

func sanitizeStrings(list []string) []string {
	list = cut(list, maxList)
	for i := range list {
		list[i] = sanitize(list[i])
	}
	return list
}

func sanitizeTask(t api.Task) api.Task {
	t.ID, t.Reason, t.Message = sanitize(t.ID), sanitize(t.Reason), sanitize(t.Message)
	t.State = api.TaskState(sanitize(string(t.State)))
	t.MissingCapabilities = cut(slices.DeleteFunc(t.MissingCapabilities, func(name string) bool { return !capability.MatchString(name) }), maxCapabilities)
	for i := range t.MissingCapabilities {
		t.MissingCapabilities[i] = strings.Clone(t.MissingCapabilities[i])
	}
	return t
}

func sanitizeList(l api.TaskList) api.TaskList {
	l.BootID = plausibleBootID(l.BootID)
	l.Tasks = cut(l.Tasks, maxList)
	for i := range l.Tasks {
		l.Tasks[i] = sanitizeTask(l.Tasks[i])
	}
	return l
}

func sanitizeInfo(i api.Info) api.Info {
	i.BootID = plausibleBootID(i.BootID)
	i.Problems, i.Capabilities = sanitizeStrings(i.Problems), sanitizeStrings(i.Capabilities)
	i.Recycle.State = api.RecycleState(sanitize(string(i.Recycle.State)))
	i.Recycle.Differences = sanitizeStrings(i.Recycle.Differences)
	i.Recycle.NotRestartable = sanitize(i.Recycle.NotRestartable)
	return i
}

func sanitizeProblem(p api.Problem) api.Problem {
	return api.Problem{
		Type: sanitize(p.Type), Title: sanitize(p.Title), Status: p.Status,
		Detail: sanitize(p.Detail), Reason: sanitize(p.Reason), Field: sanitize(p.Field),
	}
}

// plausibleBootID returns "" for what cannot be a boot id.
func plausibleBootID(s string) string {
	if len(s) > 64 {
		return ""
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return strings.Clone(s)
}
