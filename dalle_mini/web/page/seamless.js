// A choice that is a field as others are. Runs when Gradio has made seamless.html.
const choice = element.querySelector("select");
sayAll(element);
choice.value = props.value ?? "";
choice.onchange = () => {
  props.value = choice.value;
  trigger("change");
};
watch("value", () => (choice.value = props.value ?? ""));
