package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

// Bounds of what is taken in of an answer.
const (
	maxText = 1024
	// maxList is more than any executor has: it takes one task between two resets.
	maxList = 16
)

// taskList is the api.TaskList that an answer names. Entries beyond maxList are not even
// decoded: one takes two bytes of an answer and a hundred times as much in memory.
type taskList struct {
	api.TaskList
	Tasks firstTasks `json:"tasks"`
}

func (l *taskList) taken() api.TaskList {
	return api.TaskList{BootID: plausibleBootID(l.BootID), Version: l.Version, Tasks: l.Tasks}
}

type firstTasks []api.Task

// UnmarshalJSON implements json.Unmarshaler.
func (l *firstTasks) UnmarshalJSON(data []byte) error {
	entries := json.NewDecoder(bytes.NewReader(data))
	if start, err := entries.Token(); err != nil || start != json.Delim('[') {
		return errors.Join(err, json.Unmarshal(data, (*[]api.Task)(l))) // null, or of another type
	}
	*l = firstTasks{}
	for entries.More() && len(*l) < maxList {
		var t api.Task
		if err := entries.Decode(&t); err != nil {
			return err
		}
		*l = append(*l, sanitizeTask(t))
	}
	return nil
}

// sanitize returns a copy: a part of an answer must not keep all of it in memory.
func sanitize(s string) string {
	return strings.Clone(strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD"))
}

func sanitizeTask(t api.Task) api.Task {
	t.ID, t.Reason, t.Message = sanitize(t.ID), sanitize(t.Reason), sanitize(t.Message)
	t.State = api.TaskState(sanitize(string(t.State)))
	return t
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
