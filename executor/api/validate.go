package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
)

// FieldError says which field of a request is wrong, and how.
type FieldError struct {
	Field  string
	Detail string
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return e.Detail
	}
	return e.Field + ": " + e.Detail
}

var taskID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// ValidateTaskID refuses ids that are not safe as a file name.
func ValidateTaskID(id string) error {
	if !taskID.MatchString(id) {
		return &FieldError{"id", fmt.Sprintf("%q must be 1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit", truncate(id))}
	}
	return nil
}

// Decode reads one JSON value strictly: a field that v does not know, and
// anything after the value, is an error of type *FieldError.
func Decode(body []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return decodeError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &FieldError{"", "there is more than one JSON value"}
	}
	return nil
}

func decodeError(err error) error {
	var wrongType *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrongType):
		return &FieldError{wrongType.Field, fmt.Sprintf("a JSON %s is not of type %s", truncate(wrongType.Value), wrongType.Type)}
	case strings.HasPrefix(err.Error(), "json: unknown field "):
		name := strings.Trim(strings.TrimPrefix(err.Error(), "json: unknown field "), `"`)
		return &FieldError{truncate(name), "there is no such field"}
	case errors.Is(err, io.EOF):
		return &FieldError{"", "the body is empty"}
	default:
		return &FieldError{"", "the body is not JSON: " + truncate(err.Error())}
	}
}

// DecodeTaskRequest reads and checks the body of a PUT.
func DecodeTaskRequest(body []byte) (TaskRequest, error) {
	var request TaskRequest
	if err := Decode(body, &request); err != nil {
		return TaskRequest{}, err
	}
	return request, request.Validate()
}

// Validate returns a *FieldError for the first field that is wrong.
func (r TaskRequest) Validate() error {
	if r.Shard < 0 {
		return &FieldError{"shard", fmt.Sprintf("%d is negative", r.Shard)}
	}
	return r.Spec.Validate()
}

// Validate returns a *FieldError for the first field that is wrong.
func (s TaskSpec) Validate() error {
	p := s.Process
	switch {
	case len(p.Command) == 0:
		return &FieldError{"spec.process.command", "must not be empty"}
	case p.Command[0] == "":
		return &FieldError{"spec.process.command[0]", "must not be empty"}
	case strings.ContainsRune(p.WorkingDir, 0):
		return &FieldError{"spec.process.workingDir", "must not contain a NUL byte"}
	case s.TimeoutSeconds < 0 || s.TimeoutSeconds > MaxTimeoutSeconds:
		return &FieldError{"spec.timeoutSeconds", fmt.Sprintf("%d is not between 0 and %d", s.TimeoutSeconds, MaxTimeoutSeconds)}
	}
	if err := validateGrace("spec.graceSeconds", s.GraceSeconds); err != nil {
		return err
	}
	if err := validateArgs("spec.process.command", p.Command); err != nil {
		return err
	}
	if err := validateArgs("spec.process.args", p.Args); err != nil {
		return err
	}
	if err := validateEnv("spec.process.env", p.Env); err != nil {
		return err
	}
	if err := validateHook("spec.process.preStart", p.PreStart); err != nil {
		return err
	}
	if err := validateHook("spec.process.postStop", p.PostStop); err != nil {
		return err
	}
	return validateFiles("spec.files", s.Files)
}

func validateHook(field string, h *Hook) error {
	switch {
	case h == nil:
		return nil
	case len(h.Command) == 0 || h.Command[0] == "":
		return &FieldError{field + ".command", "must not be empty"}
	case h.TimeoutSeconds < 1 || h.TimeoutSeconds > MaxHookSeconds:
		return &FieldError{field + ".timeoutSeconds", fmt.Sprintf("%d is not between 1 and %d", h.TimeoutSeconds, MaxHookSeconds)}
	}
	return validateArgs(field+".command", h.Command)
}

// validateFiles says nothing of what is in the files.
func validateFiles(field string, files []File) error {
	if len(files) > MaxFiles {
		return &FieldError{field, fmt.Sprintf("%d files are more than %d", len(files), MaxFiles)}
	}
	total := 0
	seen := make(map[string]bool, len(files))
	for i := range files {
		f := &files[i]
		at := fmt.Sprintf("%s[%d]", field, i)
		switch {
		case !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path || f.Path == "/" || strings.ContainsRune(f.Path, 0):
			return &FieldError{at + ".path", fmt.Sprintf("%q is not the absolute path of a file, without \".\" and \"..\"", truncate(f.Path))}
		case seen[f.Path]:
			return &FieldError{at + ".path", fmt.Sprintf("%q is there twice", truncate(f.Path))}
		case f.Mode > 0o777:
			return &FieldError{at + ".mode", fmt.Sprintf("%#o is more than 0777", f.Mode)}
		}
		seen[f.Path] = true
		total += len(f.Content)
	}
	if total > MaxFilesBytes {
		return &FieldError{field, fmt.Sprintf("the files hold %d bytes, more than %d", total, MaxFilesBytes)}
	}
	return nil
}

func validateArgs(field string, args []string) error {
	for i, arg := range args {
		if strings.ContainsRune(arg, 0) {
			return &FieldError{fmt.Sprintf("%s[%d]", field, i), "must not contain a NUL byte"}
		}
	}
	return nil
}

// Validate returns a *FieldError for the first field that is wrong.
func (r ResetRequest) Validate() error { return validateGrace("graceSeconds", r.GraceSeconds) }

func validateGrace(field string, seconds *int64) error {
	if seconds != nil && (*seconds < 0 || *seconds > MaxGraceSeconds) {
		return &FieldError{field, fmt.Sprintf("%d is not between 0 and %d", *seconds, MaxGraceSeconds)}
	}
	return nil
}

func validateEnv(field string, env []EnvVar) error {
	for i, v := range env {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") {
			return &FieldError{fmt.Sprintf("%s[%d].name", field, i), fmt.Sprintf("%q is not the name of a variable", truncate(v.Name))}
		}
		if strings.ContainsRune(v.Value, 0) {
			return &FieldError{fmt.Sprintf("%s[%d].value", field, i), "must not contain a NUL byte"}
		}
	}
	return nil
}

// truncate bounds the part of an answer that repeats what a request said, since anybody may
// have sent that.
func truncate(s string) string {
	const most = 100
	if len(s) <= most {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:most], "\uFFFD") + "..."
}
