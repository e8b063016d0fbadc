package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/sessionhttp"
	"gorm.io/gorm"
)

// project finds the user's own, the only one they ever get at.
func (s *site) project(ctx context.Context, user *User) (*Project, error) {
	var p Project
	return &p, s.db.WithContext(ctx).Where("user_id = ?", user.ID).Take(&p).Error
}

type projectKeys struct {
	Project *Project
	Keys    []APIKey
}

var keysView = view{Title: "API keys", Tab: "keys"}

func (s *site) listKeys(w http.ResponseWriter, r *http.Request, device *Device) error {
	project, err := s.project(r.Context(), device.Owner)
	if err != nil {
		return err
	}
	list, err := s.keys.List(r.Context(), gormsessions.Active, gormsessions.ForOwner(project))
	if err != nil {
		return err
	}
	v := keysView
	v.Device, v.Data = device, projectKeys{project, list}
	return s.show(w, r, "keys", v)
}

// isFresh reports whether the person proved lately who they are: a key outlives the
// session, so a browser left open is not enough to make one. Else it sends them to
// confirm their password, and back to the form.
func (s *site) isFresh(w http.ResponseWriter, r *http.Request, device *Device) bool {
	if device.IsFresh(s.fresh) {
		return true
	}
	http.Redirect(w, r, "/confirm?return_to=/keys/new", http.StatusSeeOther)
	return false
}

var newKeyView = view{Title: "New API key", Tab: "keys"}

func (s *site) newKeyPage(w http.ResponseWriter, r *http.Request, device *Device) error {
	if !s.isFresh(w, r, device) {
		return nil
	}
	v := newKeyView
	v.Device, v.Data = device, form{}
	return s.show(w, r, "key-new", v)
}

type createdKey struct {
	*APIKey
	Secret string
	URL    string
}

// createKey shows the new key in its answer: this is the one time that it can.
func (s *site) createKey(w http.ResponseWriter, r *http.Request, device *Device) error {
	if !s.isFresh(w, r, device) {
		return nil
	}
	if err := r.ParseForm(); err != nil {
		return badForm(err)
	}
	key, err := s.addKey(r, device.Owner)
	if err != nil {
		v := newKeyView
		v.Device = device
		return s.again(w, err, "key-new", v, form{Name: clean(r.PostFormValue("name"), 60)})
	}
	v := view{Title: "Your new API key", Tab: "keys", Device: device}
	v.Data = createdKey{key, string(key.Token), s.url}
	return s.show(w, r, "key-created", v)
}

func (s *site) addKey(r *http.Request, user *User) (*APIKey, error) {
	key := APIKey{Name: clean(r.PostFormValue("name"), 60), Abilities: gormsessions.Abilities{abilityRead}}
	if key.Name == "" {
		return nil, invalid("give the key a name, to know it by")
	}
	if r.PostFormValue("write") != "" {
		key.Abilities = append(key.Abilities, abilityWrite)
	}
	if days, err := strconv.Atoi(r.PostFormValue("days")); err != nil || days < 0 || days > 366 {
		return nil, invalid("say how long the key is to live")
	} else if days > 0 {
		end := s.now().AddDate(0, 0, days)
		key.ExpiresAt = &end
	}
	project, err := s.project(r.Context(), user)
	if err != nil {
		return nil, err
	}
	err = s.storeKey(r.Context(), project, &key)
	if errors.Is(err, gormsessions.ErrTooManySessions) {
		err = invalid("the project has " + strconv.Itoa(maxKeys) + " keys, which is the most: revoke one first")
	}
	return &key, err
}

// storeKey creates the key with its hint: only now is the token known.
func (s *site) storeKey(ctx context.Context, project *Project, key *APIKey) error {
	key.OwnerID = project.ID
	return s.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if err := s.keys.With(tx).Create(ctx, key); err != nil {
			return err
		}
		return tx.Model(key).Update("hint", hint(key.Token)).Error
	})
}

// hint is how a key begins. The four letters after the prefix leave 230 of its 256
// random bits unknown.
func hint(token gormsessions.Token) string { return string(token)[:len("demo_")+4] }

func (s *site) revokeKey(w http.ResponseWriter, r *http.Request, device *Device) error {
	id, err := uuid.Parse(r.PathValue("id"))
	if err != nil {
		return errNotFound
	}
	project, err := s.project(r.Context(), device.Owner)
	if err != nil {
		return err
	}
	if _, err := s.keys.Revoke(r.Context(), "revoked by its owner", gormsessions.ForOwner(project), gormsessions.WithID(id)); err != nil {
		return err
	}
	http.Redirect(w, r, "/keys?done=key-revoked", http.StatusSeeOther)
	return nil
}

// apiHandler answers with JSON.
func (s *site) apiHandler(answer func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := answer(r)
		status := http.StatusOK
		var p problem
		switch {
		case errors.As(err, &p):
			status, body = p.Status, map[string]string{"error": p.Text}
		case err != nil:
			s.report(r, err)
			status, body = http.StatusServiceUnavailable, map[string]string{"error": "try again later"}
		}
		text, err := json.MarshalIndent(body, "", "  ")
		if err != nil {
			panic(err) // a mistake here: net/http logs it
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(append(text, '\n'))
	})
}

// me says who is asking: a person with a cookie, or a program with a key.
func (s *site) me(r *http.Request) (any, error) {
	if key, ok := sessionhttp.FromContext[APIKey](r.Context()); ok {
		return map[string]any{"project": key.Owner.Name, "key": key.Name, "abilities": key.Abilities, "expires": key.ExpiresAt}, nil
	}
	device, err := sessionhttp.Load[Device](r.Context())
	if err != nil {
		return nil, err
	}
	return map[string]any{"user": device.Owner.Email, "device": device.Label(), "expires": device.ExpiresAt}, nil
}

func (s *site) showProject(r *http.Request) (any, error) {
	key, err := sessionhttp.Load[APIKey](r.Context())
	if err != nil {
		return nil, err
	}
	return map[string]any{"name": key.Owner.Name}, nil
}

// renameProject takes the new name as the body.
func (s *site) renameProject(r *http.Request) (any, error) {
	key, err := sessionhttp.Load[APIKey](r.Context())
	if err != nil {
		return nil, err
	}
	var body struct{ Name string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, problem{http.StatusBadRequest, "Bad request", `the body is JSON: {"name": "…"}`}
	}
	name := clean(body.Name, 60)
	if name == "" {
		return nil, problem{http.StatusUnprocessableEntity, "No name", "the name is empty"}
	}
	err = s.db.WithContext(r.Context()).Model(key.Owner).Update("name", name).Error
	return map[string]any{"name": name}, err
}
